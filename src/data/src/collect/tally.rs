//! What an item adds to its slice's tally. Pure.

use std::collections::BTreeMap;

use collect_api::protocol::{ItemDifference, ItemTally, Tally};

use crate::{http::paginate::Span, text};

/// Most samples of items whose count differs.
const MAX_SAMPLES: usize = 5;

/// What is known of an item while it is read and at its end.
#[derive(Clone, Debug)]
pub struct ItemEnd {
    name: String,
    span: Span,
    tally: ItemTally,
    last_total: Option<i64>,
}

impl ItemEnd {
    /// An item of which an earlier attempt may have read a part.
    pub fn new(name: String, span: Span, tally: ItemTally) -> Self {
        Self { name, span, last_total: tally.total, tally }
    }

    /// Takes in a page.
    pub fn page(&mut self, records: i64, total: Option<i64>) {
        self.tally.records += records;
        self.tally.total = self.tally.total.or(total);
        self.last_total = total.or(self.last_total);
    }

    /// Records read so far.
    pub fn read(&self) -> i64 {
        self.tally.records
    }

    /// For the checkpoint.
    pub fn so_far(&self) -> ItemTally {
        self.tally.clone()
    }

    /// Records of the total that fall to this item, as the last page had it.
    pub fn share(&self) -> Option<i64> {
        self.last_total.map(|total| self.span.share(total))
    }
}

/// Adds a finished item to the tally of its slice.
pub fn finish_item(tally: &mut Tally, end: ItemEnd) {
    tally.items += 1;
    let Some(share) = end.share() else {
        tally.without_total += 1;
        return;
    };
    tally.source += share;
    tally.moved += i32::from(end.tally.total != end.last_total);
    tally.unreliable += i32::from(end.tally.records > share);
    if end.tally.records != share && tally.samples.len() < MAX_SAMPLES {
        tally.samples.push(ItemDifference { item: end.name, source: share, collected: end.tally.records });
    }
}

/// Name of an item for people: its level values joined by `/`.
pub fn name_of(values: &BTreeMap<String, String>) -> String {
    text::shorten(&values.values().map(String::as_str).collect::<Vec<_>>().join("/"), 128)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads pages of (records, total) and finishes.
    fn finish(span: Span, pages: &[(i64, Option<i64>)]) -> Tally {
        let mut end = ItemEnd::new("44/4403".into(), span, ItemTally::default());
        pages.iter().for_each(|(records, total)| end.page(*records, *total));
        let mut tally = Tally::default();
        finish_item(&mut tally, end);
        tally
    }

    #[test]
    fn an_item_is_compared_with_its_share_of_the_total() {
        let all = Span::default();
        let second = Span { first: 2, end: Some(4), size: Some(10) };
        let last = Span { first: 4, end: None, size: Some(10) };
        for (name, span, pages, (source, without, moved, unreliable, samples)) in [
            ("equal", all, vec![(10, Some(15)), (5, Some(15))], (15, 0, 0, 0, 0)),
            ("fewer", all, vec![(10, Some(15))], (15, 0, 0, 0, 1)),
            ("more", all, vec![(16, Some(15))], (15, 0, 0, 1, 1)),
            ("moved", all, vec![(10, Some(15)), (6, Some(16))], (16, 0, 1, 0, 0)),
            ("without total", all, vec![(10, None)], (0, 1, 0, 0, 0)),
            ("a total only on the first page", all, vec![(10, Some(12)), (2, None)], (12, 0, 0, 0, 0)),
            ("a part in the middle", second, vec![(10, Some(45)), (10, Some(45))], (20, 0, 0, 0, 0)),
            ("an open part", last, vec![(5, Some(45))], (5, 0, 0, 0, 0)),
            ("an open part behind a lying total", last, vec![(10, Some(45)), (3, Some(45))], (5, 0, 0, 1, 1)),
        ] {
            let tally = finish(span, &pages);
            let found = (tally.source, tally.without_total, tally.moved, tally.unreliable, tally.samples.len());
            assert_eq!((tally.items, found), (1, (source, without, moved, unreliable, samples)), "{name}");
        }
    }

    #[test]
    fn samples_are_few_and_short() {
        let mut tally = Tally::default();
        for _ in 0..9 {
            let mut end = ItemEnd::new(
                name_of(&BTreeMap::from([("l".into(), "x".repeat(200))])),
                Span::default(),
                ItemTally::default(),
            );
            end.page(1, Some(2));
            finish_item(&mut tally, end);
        }
        assert_eq!((tally.samples.len(), tally.samples[0].item.chars().count(), tally.items), (5, 128, 9));
    }
}
