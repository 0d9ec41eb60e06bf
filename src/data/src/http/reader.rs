//! Reads one item page by page: asks the paginator, sends, and fetches a few pages ahead where their place is known.

use std::{collections::VecDeque, sync::Arc};

use collect_api::plan::Part;
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::{
    Error,
    http::{
        Answer, Client, Draft, Endpoint, HttpError, Variables,
        paginate::{self, At, Facts, Outcome, Rule, Span, State, Stop},
    },
};

/// Most pages that are fetched ahead.
const MAX_AHEAD: usize = 4;
/// Bytes that pages fetched ahead may take together.
const MAX_AHEAD_BYTES: usize = 16 << 20;

/// What a fetch gave.
#[derive(Debug)]
pub enum Fetched {
    /// A page.
    Page(Box<Answer>),
    /// The source refuses pages behind its end; the total says that this is its end.
    PastEnd,
}

/// Reads one item.
#[derive(Debug)]
pub struct Reader {
    client: Arc<Client>,
    endpoint: Arc<Endpoint>,
    draft: Draft,
    span: Span,
    state: State,
    /// Total as the last answer had it.
    total: Option<i64>,
    page_bytes: usize,
    ahead: VecDeque<Ahead>,
}

#[derive(Debug)]
struct Ahead {
    at: At,
    fetch: Aborting,
}

/// A task that ends when nobody waits for it any more.
#[derive(Debug)]
struct Aborting(JoinHandle<Result<Answer, HttpError>>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reader {
    /// A reader of one part of a value; from a checkpoint's paginator state, with the total known then, if there is one.
    ///
    /// # Errors
    /// When the request can't be made or the state belongs to another pagination.
    pub fn new(
        client: &Arc<Client>,
        endpoint: &Arc<Endpoint>,
        variables: &Variables,
        part: &Part,
        resume: Option<(State, Option<i64>)>,
    ) -> Result<Self, Error> {
        let rule = endpoint.rule();
        let span = Span::of(rule, part)?;
        let (state, total) = resume.unwrap_or_else(|| (State::start(rule, span), None));
        Ok(Self {
            client: Arc::clone(client),
            endpoint: Arc::clone(endpoint),
            draft: endpoint.draft(variables)?,
            span,
            state,
            total,
            page_bytes: 0,
            ahead: VecDeque::new(),
        })
    }

    /// The paginator's state: where the next fetch starts.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The span that is read.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Fetches the page that the state points to. May be cancelled and called again.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub async fn fetch(&mut self) -> Result<Fetched, Error> {
        self.look_ahead()?;
        let outcome = match self.ahead.front_mut() {
            Some(ahead) if ahead.at == self.state.at => {
                let outcome = (&mut ahead.fetch.0).await;
                self.ahead.pop_front();
                match outcome {
                    Ok(outcome) => outcome,
                    // The task panicked or was cut off: ask again, in the open.
                    Err(_) => self.client.send(&self.endpoint.page(&self.draft, &self.state)?).await,
                }
            }
            _ => {
                self.ahead.clear();
                self.client.send(&self.endpoint.page(&self.draft, &self.state)?).await
            }
        };
        match outcome {
            Ok(answer) => {
                self.page_bytes = answer.body.get().len();
                Ok(Fetched::Page(Box::new(answer)))
            }
            Err(error) if self.is_past_end(&error) => Ok(Fetched::PastEnd),
            Err(error) => Err(error.into()),
        }
    }

    /// Some sources answer 404 behind their last page. With every record that the total promises read, that is the end.
    fn is_past_end(&self, error: &HttpError) -> bool {
        matches!(self.endpoint.rule(), Rule::Pages { .. } | Rule::Offsets { .. })
            && error.refused_with() == Some(404)
            && self.state.pages > 0
            && self.total.is_some_and(|total| self.state.position(self.span) >= total)
    }

    /// Takes in the facts of the page that was fetched. Gives the reason if it was the last.
    ///
    /// # Errors
    /// When the source repeats itself, cuts pages or contradicts itself.
    pub fn advance(&mut self, facts: &Facts) -> Result<Option<Stop>, Error> {
        self.total = facts.total.or(self.total);
        match paginate::next(self.endpoint.rule(), self.span, &self.state, facts)? {
            Outcome::Next(state) => {
                self.state = state;
                Ok(None)
            }
            Outcome::Stop(state, stop) => {
                self.state = state;
                self.ahead.clear();
                Ok(Some(stop))
            }
        }
    }

    /// Starts fetching the pages that will be wanted next, as far as their place is certain.
    fn look_ahead(&mut self) -> Result<(), Error> {
        let room = self.room_ahead();
        if room == 0 || self.state.probing {
            return Ok(());
        }
        // The page wanted now is the first of them.
        let mut at = self.ahead.back().map_or_else(|| Some(self.state.at.clone()), |last| self.following(&last.at));
        while self.ahead.len() <= room {
            let Some(place) = at.filter(|place| self.is_within(place)) else { break };
            let state = State { at: place.clone(), ..self.state.clone() };
            let request = self.endpoint.page(&self.draft, &state)?;
            let client = Arc::clone(&self.client);
            let fetch = Aborting(tokio::spawn(async move { client.send(&request).await }.in_current_span()));
            at = self.following(&place);
            self.ahead.push_back(Ahead { at: place, fetch });
        }
        Ok(())
    }

    fn room_ahead(&self) -> usize {
        if self.state.pages == 0 || self.state.size.is_none() {
            return 0;
        }
        let by_bytes = MAX_AHEAD_BYTES / self.page_bytes.max(1);
        MAX_AHEAD.min(by_bytes).min(self.client.concurrency().saturating_sub(1))
    }

    fn following(&self, at: &At) -> Option<At> {
        match at {
            At::Page(page) => Some(At::Page(page + 1)),
            At::Offset(offset) => self.state.size.map(|size| At::Offset(offset + size)),
            At::Start | At::Token(_) | At::Url(_) => None,
        }
    }

    /// Whether a page will be wanted for sure: within the part, and not behind the total.
    fn is_within(&self, at: &At) -> bool {
        let Some(size) = self.state.size else { return false };
        let (place, record) = match at {
            At::Page(page) => (*page, page.saturating_mul(size)),
            At::Offset(offset) => (*offset, *offset),
            At::Start | At::Token(_) | At::Url(_) => return false,
        };
        let within_part = self.span.end.is_none_or(|end| place < end);
        within_part && self.total.is_some_and(|total| record < total)
    }
}
