//! Publishing over HTTP in turns: so many pieces are appended at a time, and where more want to, each sender has its
//! turn after the others'. One that publishes without a pause delays nobody by more than a piece.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

/// Pieces that are appended at a time: enough to keep Redis busy.
const AT_ONCE: usize = 8;

/// Who may append, and who waits for it.
#[derive(Debug)]
pub(crate) struct Turns(Mutex<TurnState>);

#[derive(Debug)]
struct TurnState {
    free: usize,
    /// Each sender once, the one whose turn comes next first.
    waiting: VecDeque<(Box<str>, VecDeque<oneshot::Sender<PublishTurn>>)>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct PublishTurn(Option<Arc<Turns>>);

impl Turns {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(TurnState { free: AT_ONCE, waiting: VecDeque::new() })))
    }

    /// Waits for a turn of `sender`. Cancel-safe.
    pub(super) async fn wait(self: &Arc<Self>, sender: &str) -> PublishTurn {
        let turn = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return PublishTurn(Some(Arc::clone(self)));
            }
            let (given, turn) = oneshot::channel();
            match state.waiting.iter_mut().find(|(of, _)| **of == *sender) {
                Some((_, queue)) => queue.push_back(given),
                None => state.waiting.push_back((sender.into(), VecDeque::from([given]))),
            }
            turn
        };
        turn.await.expect("a waiting turn is given, not dropped")
    }

    fn next(&self) -> Option<oneshot::Sender<PublishTurn>> {
        let mut state = self.state();
        let Some((sender, mut queue)) = state.waiting.pop_front() else {
            state.free += 1;
            return None;
        };
        let next = queue.pop_front();
        if !queue.is_empty() {
            state.waiting.push_back((sender, queue));
        }
        next
    }

    fn state(&self) -> MutexGuard<'_, TurnState> {
        self.0.lock().expect("no code panics with this lock held")
    }
}

impl Drop for PublishTurn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        while let Some(next) = turns.next() {
            match next.send(Self(Some(Arc::clone(&turns)))) {
                Ok(()) => return,
                // It waits no more.
                Err(mut turn) => turn.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn each_sender_has_its_turn_after_the_others() {
        let turns = Turns::new();
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(turns.wait("flood").await);
        }
        let mut floods: VecDeque<_> = (0..100).map(|_| Box::pin(turns.wait("flood"))).collect();
        assert!(floods.iter_mut().all(|one| one.now_or_never().is_none()));
        let mut others: VecDeque<_> = (0..2).map(|_| Box::pin(turns.wait("other"))).collect();
        assert!(others.iter_mut().all(|one| one.now_or_never().is_none()));

        for _ in 0..2 {
            held.pop();
            held.push(floods.pop_front().unwrap().now_or_never().expect("the flood's turn"));
            held.pop();
            held.push(others.pop_front().unwrap().now_or_never().expect("the other's turn"));
        }
        held.pop();
        assert!(floods.pop_front().unwrap().now_or_never().is_some(), "nobody else waits");
    }

    #[tokio::test]
    async fn who_does_not_wait_any_more_keeps_no_turn() {
        let turns = Turns::new();
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(turns.wait("a").await);
        }
        let mut waiting: Vec<_> = (0..50).map(|_| Box::pin(turns.wait("a"))).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
        // The first was given its turn and did not look; the others left before.
        held.pop();
        drop(waiting);
        drop(held);

        assert_eq!(turns.state().free, AT_ONCE);
        assert!(turns.wait("a").now_or_never().is_some());
    }
}
