//! What can be done to a cluster, and the cards that say in which order: drawn from the seed alone, never from what happens.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    /// SIGKILL to the operator's process; the kubelet starts it again in the same pod.
    Operator,
    /// The operator's pod deleted without grace, as by a person or a node that goes.
    OperatorPod,
    /// SIGKILL to the shim that holds the operator's containers.
    OperatorShim,
    /// SIGKILL to a worker's process, as by the kernel.
    Worker,
    /// SIGKILL to the shim that holds a worker's containers.
    WorkerShim,
    /// The API server ended and started again.
    ApiServer,
    /// etcd ended and started again.
    Etcd,
    /// The whole tree paused, and resumed after a while.
    PauseRoot,
    /// One child paused, and resumed after a while.
    PauseChild,
}

impl Blow {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator process",
            Self::OperatorPod => "operator pod",
            Self::OperatorShim => "operator shim",
            Self::Worker => "worker process",
            Self::WorkerShim => "worker shim",
            Self::ApiServer => "API server",
            Self::Etcd => "etcd",
            Self::PauseRoot => "pause of the root",
            Self::PauseChild => "pause of a child",
        }
    }

    /// Whether something is killed; else it is a verb of a user.
    pub fn is_kill(self) -> bool {
        !matches!(self, Self::PauseRoot | Self::PauseChild)
    }
}

/// How often each blow is among the cards.
pub type Cards = &'static [(Blow, usize)];

/// One of each.
pub const EACH: Cards = &[
    (Blow::Operator, 1),
    (Blow::OperatorPod, 1),
    (Blow::OperatorShim, 1),
    (Blow::Worker, 1),
    (Blow::WorkerShim, 1),
    (Blow::ApiServer, 1),
    (Blow::Etcd, 1),
    (Blow::PauseRoot, 1),
    (Blow::PauseChild, 1),
];

/// What breaks often in a real cluster is among them more often. Operators that can't give their lease back are missed for some 20 s,
/// in which there is little to hit: were they more, little would be collected.
pub const MANY: Cards = &[
    (Blow::Operator, 2),
    (Blow::OperatorPod, 2),
    (Blow::OperatorShim, 1),
    (Blow::Worker, 8),
    (Blow::WorkerShim, 3),
    (Blow::ApiServer, 2),
    (Blow::Etcd, 2),
    (Blow::PauseRoot, 1),
    (Blow::PauseChild, 2),
];

/// A card, with all that chance decides about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// What is done.
    pub blow: Blow,
    /// Time before it, 0 to 2, in mean times between blows.
    pub gap: f64,
    /// Which of the possible victims, 0 to 1.
    pub pick: f64,
    /// SIGKILL instead of SIGTERM, where a component can be ended in both ways.
    pub hard: bool,
    /// Length of a pause in seconds.
    pub hold: f64,
}

/// Cards that are shuffled anew when all were drawn, so that no kind can be absent for long.
#[derive(Debug)]
pub struct Deck {
    random: StdRng,
    cards: Cards,
    pile: Vec<Draw>,
}

impl Deck {
    /// A deck that gives the same cards in the same order for the same seed.
    pub fn new(seed: u64, cards: Cards) -> Self {
        Self { random: StdRng::seed_from_u64(seed), cards, pile: Vec::new() }
    }

    /// The next card.
    pub fn draw(&mut self) -> Draw {
        if self.pile.is_empty() {
            let all = self.cards.iter().flat_map(|(blow, times)| std::iter::repeat_n(*blow, *times));
            let mut all: Vec<_> = all.collect();
            all.shuffle(&mut self.random);
            let random = &mut self.random;
            self.pile = all
                .into_iter()
                .map(|blow| Draw {
                    blow,
                    gap: random.random_range(0.0..2.0),
                    pick: random.random_range(0.0..1.0),
                    hard: random.random_bool(0.5),
                    hold: random.random_range(1.0..6.0),
                })
                .collect();
        }
        self.pile.pop().expect("the deck has cards")
    }

    /// A card that found no victim is the next one again.
    pub fn put_back(&mut self, draw: Draw) {
        self.pile.push(draw);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_cards() {
        let draws = |seed: u64| {
            let mut deck = Deck::new(seed, MANY);
            (0..100).map(|_| deck.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
    }

    #[test]
    fn every_kind_is_drawn_before_one_is_drawn_again() {
        let mut deck = Deck::new(3, EACH);
        let mut drawn: Vec<_> = EACH.iter().map(|_| deck.draw().blow).collect();
        drawn.sort();
        assert_eq!(drawn, EACH.iter().map(|(blow, _)| *blow).collect::<Vec<_>>());
    }

    #[test]
    fn a_card_that_is_put_back_comes_next() {
        let mut deck = Deck::new(3, EACH);
        let draw = deck.draw();
        deck.put_back(draw);
        assert_eq!(deck.draw(), draw);
    }
}
