//! The ids of a channel's last commands: what was taken once is not taken again.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// How many ids are remembered: what a journal repeats after it was lost.
const REMEMBERED: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Seen {
    ids: HashSet<Arc<str>>,
    oldest_first: VecDeque<Arc<str>>,
}

impl Seen {
    /// Whether `id` comes for the first time; from now on it has been seen.
    pub(super) fn is_new(&mut self, id: &str) -> bool {
        if self.ids.contains(id) {
            return false;
        }
        let id: Arc<str> = id.into();
        self.ids.insert(Arc::clone(&id));
        self.oldest_first.push_back(id);
        if self.oldest_first.len() > REMEMBERED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ids_are_remembered_and_no_more() {
        let mut seen = Seen::default();
        for n in 0..=REMEMBERED {
            assert!(seen.is_new(&n.to_string()));
        }
        assert!(!seen.is_new("1"));
        assert!(!seen.is_new(&REMEMBERED.to_string()));
        assert!(seen.is_new("0"), "the oldest was forgotten");
        assert_eq!(seen.ids.len(), REMEMBERED);
    }
}
