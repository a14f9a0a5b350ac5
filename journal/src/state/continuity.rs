//! Since when Redis has answered, and written, without a break. Pure.
//!
//! [`reaper`](super::reaper) → **continuity**. A lease that was not renewed says that its agent is dead only
//! where the agent could have renewed it. So the reaper writes a small key with each poll, and judges leases
//! only when that has succeeded for one whole lease: on one connection, on one server, with one clock.

use std::time::Duration;

use tokio::time::Instant;

/// After a longer pause between two polls nobody knows what happened in between.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A clock that steps by more than this has made deadlines fall due, or put them off.
const STEP_MAX: Duration = Duration::from_secs(1);

/// What Redis answered to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Counts the connections on which was asked.
    pub(crate) connection: u64,
    /// Which run of which server answered, where it says so.
    pub(crate) run_id: Option<String>,
    /// Its clock.
    pub(crate) time: Duration,
}

#[derive(Clone, Debug)]
struct AnsweredProbe {
    probe: Probe,
    sent: Instant,
    received: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Continuity {
    since: Option<Instant>,
    last: Option<AnsweredProbe>,
}

impl Continuity {
    /// Redis has written, between `sent` and `received`.
    pub(super) fn answered(&mut self, probe: Probe, sent: Instant, received: Instant) {
        let now = AnsweredProbe { probe, sent, received };
        let goes_on = self.last.as_ref().is_some_and(|last| now.continues(last));
        if !goes_on {
            self.since = None;
        }
        self.since.get_or_insert(received);
        self.last = Some(now);
    }

    /// Redis has not answered, or has refused a write.
    pub(super) fn broken(&mut self) {
        *self = Self::default();
    }

    /// Whether there was no break for `lease`.
    pub(super) fn has_lasted(&self, now: Instant, lease: Duration) -> bool {
        self.since.is_some_and(|since| now.duration_since(since) >= lease)
    }
}

impl AnsweredProbe {
    fn continues(&self, last: &Self) -> bool {
        let is_same = self.probe.connection == last.probe.connection
            && self.probe.run_id == last.probe.run_id;
        // The server looked at its clock somewhere between sending and receiving.
        let shortest = self.sent.saturating_duration_since(last.received);
        let longest = self.received.duration_since(last.sent);
        let (before, now) = (last.probe.time, self.probe.time + STEP_MAX);
        let is_steady = now >= before + shortest && now <= before + longest + 2 * STEP_MAX;
        is_same && is_steady && shortest <= PAUSE_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn probe(time: u64) -> Probe {
        Probe { connection: 1, run_id: Some("a".to_owned()), time: ms(time) }
    }

    /// Polls twice a second for `polls` times from `from` on.
    fn steady(continuity: &mut Continuity, epoch: Instant, from: u64, polls: u64) -> u64 {
        let mut at = from;
        for _ in 0..polls {
            continuity.answered(probe(1_000_000 + at), epoch + ms(at), epoch + ms(at + 10));
            at += 500;
        }
        at
    }

    #[test]
    fn a_lease_is_judged_after_one_whole_lease_of_answers() {
        let (mut continuity, epoch) = (Continuity::default(), Instant::now());
        assert!(!continuity.has_lasted(epoch + LEASE, LEASE), "nobody has asked");
        let at = steady(&mut continuity, epoch, 0, 30);
        assert!(!continuity.has_lasted(epoch + ms(at), LEASE));
        let at = steady(&mut continuity, epoch, at, 1);
        assert!(continuity.has_lasted(epoch + ms(at), LEASE));
    }

    #[test]
    fn each_break_begins_the_wait_anew() {
        type Disturb = fn(Probe) -> (Probe, u64);
        let breaks: [(&str, Disturb); 6] = [
            ("a new connection", |p| (Probe { connection: 2, ..p }, 0)),
            ("another server", |p| (Probe { run_id: Some("b".to_owned()), ..p }, 0)),
            ("a run id that is not told any more", |p| (Probe { run_id: None, ..p }, 0)),
            ("a clock that went on", |p| (Probe { time: p.time + ms(1_100), ..p }, 0)),
            ("a clock that went back", |p| (Probe { time: p.time - ms(1_600), ..p }, 0)),
            ("a pause", |p| (Probe { time: p.time + ms(3_000), ..p }, 3_000)),
        ];
        for (what, disturb) in breaks {
            let (mut continuity, epoch) = (Continuity::default(), Instant::now());
            let at = steady(&mut continuity, epoch, 0, 40);
            let (other, later) = disturb(probe(1_000_000 + at));
            let at = at + later;
            continuity.answered(other, epoch + ms(at), epoch + ms(at + 10));
            assert!(!continuity.has_lasted(epoch + ms(at + 20), LEASE), "{what}");
        }
        let (mut continuity, epoch) = (Continuity::default(), Instant::now());
        let at = steady(&mut continuity, epoch, 0, 40);
        continuity.broken();
        let at = steady(&mut continuity, epoch, at, 30);
        assert!(!continuity.has_lasted(epoch + ms(at), LEASE), "a refused write");
        let at = steady(&mut continuity, epoch, at, 1);
        assert!(continuity.has_lasted(epoch + ms(at), LEASE));
    }

    #[test]
    fn a_slow_answer_and_a_second_of_work_are_no_break() {
        let (mut continuity, epoch) = (Continuity::default(), Instant::now());
        let at = steady(&mut continuity, epoch, 0, 40);
        // Written at once, and answered three seconds later.
        continuity.answered(probe(1_000_000 + at), epoch + ms(at), epoch + ms(at + 3_000));
        let at = at + 3_000;
        assert!(continuity.has_lasted(epoch + ms(at), LEASE), "a slow answer");
        steady(&mut continuity, epoch, at + 1_500, 1);
        assert!(continuity.has_lasted(epoch + ms(at), LEASE), "a second of work");
    }
}
