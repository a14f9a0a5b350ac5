//! How long a connection lives: its signs of life, the end of its grant, the leaving of its replica. No clock of
//! its own: the time is an input.

use std::time::Duration;

use protocol::CloseCode;
use protocol::limits::{PING_INTERVAL, STALL_TIMEOUT, TOKEN_EXPIRING_NOTICE};
use tokio::time::Instant;

/// What a leaving replica gives a viewer to go by itself, after the moment it was told.
const GRACE: Duration = Duration::from_secs(1);
/// A session's page that received nothing for this many ping intervals, 60 s, receives a `ping`.
const SILENT_INTERVALS: u32 = 4;

/// What the transport has seen of its peer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Activity {
    /// Bytes that came.
    pub(crate) read: u64,
    /// Bytes that the system took.
    pub(crate) written: u64,
    /// How often frames were written.
    pub(crate) batches: u64,
    /// Bytes wait to be written.
    pub(crate) is_blocked: bool,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// A sign of life; one that a page's script can see, or of the transport's own kind.
    Ping { is_visible: bool },
    /// The grant ends soon.
    Expiring { left: Duration },
    /// The connection ends.
    Close(CloseCode),
}

/// The lifecycle of one viewer.
#[derive(Debug)]
pub(super) struct Lifecycle {
    tick_at: Instant,
    grant: GrantEnd,
    leave_at: Option<Instant>,
    silence: Silence,
    /// The page wants signs of life that it can see, always or after a while of silence.
    heartbeat: Heartbeat,
    batches: u64,
    silent_intervals: u32,
}

/// When a page receives a `ping` that its script can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heartbeat {
    Always,
    WhenSilent,
    Never,
}

impl Lifecycle {
    pub(super) fn new(now: Instant, grant: Option<Duration>, heartbeat: Heartbeat) -> Self {
        Self {
            tick_at: now + PING_INTERVAL,
            grant: GrantEnd::new(now, grant),
            leave_at: None,
            silence: Silence::new(now, STALL_TIMEOUT),
            heartbeat,
            batches: 0,
            silent_intervals: 0,
        }
    }

    /// The grant lasts for so long from now on.
    pub(super) fn renew(&mut self, now: Instant, grant: Option<Duration>) {
        self.grant = GrantEnd::new(now, grant);
    }

    /// The replica leaves: this viewer is to go within `after`.
    pub(super) fn leave(&mut self, now: Instant, after: Duration) {
        self.leave_at.get_or_insert(now + after + GRACE);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leave_at.is_some()
    }

    /// Whether the grant has ended, though [`on_time`](Self::on_time) has not said so yet.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.grant.is_over(now)
    }

    /// When [`on_time`](Self::on_time) has something to do next.
    pub(super) fn deadline(&self) -> Instant {
        let others = [self.grant.deadline(), self.leave_at];
        others.into_iter().flatten().fold(self.tick_at, Instant::min)
    }

    /// What is due now, one thing after the other. `is_answering`: what the viewer asked is being done.
    pub(super) fn on_time(
        &mut self,
        now: Instant,
        activity: &Activity,
        is_answering: bool,
    ) -> Option<Due> {
        if let Some(due) = self.grant.on_time(now) {
            return Some(due);
        }
        if self.leave_at.is_some_and(|at| now >= at) {
            return Some(Due::Close(CloseCode::Restart));
        }
        if now < self.tick_at {
            return None;
        }
        self.tick_at = now + PING_INTERVAL;
        if self.silence.is_over(now, activity, is_answering) {
            return Some(Due::Close(CloseCode::Stalled));
        }
        let is_silent = self.is_silent(activity);
        // Behind bytes that wait a ping would only wait as well.
        (!activity.is_blocked).then_some(Due::Ping {
            is_visible: match self.heartbeat {
                Heartbeat::Always => true,
                Heartbeat::WhenSilent => is_silent,
                Heartbeat::Never => false,
            },
        })
    }

    fn is_silent(&mut self, activity: &Activity) -> bool {
        // Each ping of ours is a batch too: one per interval is silence.
        let is_silent = activity.batches <= self.batches + 1;
        self.silent_intervals = if is_silent { self.silent_intervals + 1 } else { 0 };
        self.batches = activity.batches;
        let is_over = self.silent_intervals >= SILENT_INTERVALS;
        if is_over {
            self.silent_intervals = 0;
        }
        is_over
    }
}

/// The end of a grant, and the notice before it. Any transport's.
#[derive(Debug)]
pub(crate) struct GrantEnd {
    ends_at: Option<Instant>,
    notice_at: Option<Instant>,
}

impl GrantEnd {
    pub(crate) fn new(now: Instant, remaining: Option<Duration>) -> Self {
        // A token for ever and a day has no end that a clock could show.
        let ends_at = remaining.and_then(|remaining| now.checked_add(remaining));
        let notice_at = ends_at.map(|end| end.checked_sub(TOKEN_EXPIRING_NOTICE).unwrap_or(now));
        Self { ends_at, notice_at }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.notice_at.or(self.ends_at)
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.ends_at.is_some_and(|end| now >= end)
    }

    pub(crate) fn on_time(&mut self, now: Instant) -> Option<Due> {
        let ends_at = self.ends_at?;
        if self.is_over(now) {
            return Some(Due::Close(CloseCode::TokenExpired));
        }
        self.notice_at.take_if(|at| now >= *at)?;
        Some(Due::Expiring { left: ends_at - now })
    }
}

/// Since when nothing has moved. Any transport's.
#[derive(Debug)]
pub(crate) struct Silence {
    limit: Duration,
    read: u64,
    written: u64,
    moved_at: Instant,
    /// When bytes that wait have last moved, or none waited.
    taken_at: Instant,
}

impl Silence {
    pub(crate) fn new(now: Instant, limit: Duration) -> Self {
        Self { limit, read: 0, written: 0, moved_at: now, taken_at: now }
    }

    /// Neither sends nor accepts a byte, or sends and accepts none of those that wait. While nothing waits to be written,
    /// only what comes in counts: our pings into a dead socket's buffer prove nothing.
    pub(crate) fn is_over(
        &mut self,
        now: Instant,
        activity: &Activity,
        is_answering: bool,
    ) -> bool {
        let accepts = activity.is_blocked && activity.written != self.written;
        if activity.read != self.read || accepts || is_answering {
            self.moved_at = now;
        }
        if accepts || !activity.is_blocked {
            self.taken_at = now;
        }
        (self.read, self.written) = (activity.read, activity.written);
        self.lasts(now) >= self.limit || now - self.taken_at >= STALL_TIMEOUT
    }

    /// How long nothing has moved, as of the last look.
    pub(crate) fn lasts(&self, now: Instant) -> Duration {
        now - self.moved_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifecycle(grant: Option<u64>, heartbeat: Heartbeat) -> (Instant, Lifecycle) {
        let now = Instant::now();
        (now, Lifecycle::new(now, grant.map(Duration::from_secs), heartbeat))
    }

    /// What is due at the next deadline, and when that is, in whole seconds after `start`.
    fn next(lifecycle: &mut Lifecycle, start: Instant, activity: &Activity) -> (u64, Option<Due>) {
        let now = lifecycle.deadline();
        ((now - start).as_secs(), lifecycle.on_time(now, activity, false))
    }

    const PING: Option<Due> = Some(Due::Ping { is_visible: false });
    const VISIBLE_PING: Option<Due> = Some(Due::Ping { is_visible: true });

    #[test]
    fn a_peer_from_which_nothing_comes_is_closed_after_two_pings() {
        let (start, mut life) = lifecycle(None, Heartbeat::Never);
        let activity = |read| Activity { read, ..Activity::default() };
        assert_eq!(next(&mut life, start, &activity(1)), (15, PING));
        assert_eq!(next(&mut life, start, &activity(1)), (30, PING));
        let stalled = Some(Due::Close(CloseCode::Stalled));
        assert_eq!(next(&mut life, start, &activity(1)), (45, stalled));
    }

    #[test]
    fn a_byte_now_and_then_is_a_sign_of_life_while_bytes_wait() {
        let (start, mut life) = lifecycle(None, Heartbeat::Always);
        for tick in 1..10 {
            let activity = Activity { written: tick, is_blocked: true, ..Activity::default() };
            assert_eq!(next(&mut life, start, &activity), (15 * tick, None), "no ping behind them");
        }
        let activity = Activity { written: 9, is_blocked: true, ..Activity::default() };
        assert_eq!(next(&mut life, start, &activity).1, None);
        assert_eq!(next(&mut life, start, &activity).1, Some(Due::Close(CloseCode::Stalled)));
    }

    /// However much it sends.
    #[test]
    fn a_peer_that_takes_nothing_of_what_waits_is_closed() {
        let (start, mut life) = lifecycle(None, Heartbeat::Never);
        let mut at = |tick: u64| {
            let activity = Activity { read: tick, written: 9, is_blocked: true, batches: 0 };
            next(&mut life, start, &activity)
        };
        assert_eq!((at(1), at(2)), ((15, None), (30, None)));
        assert_eq!(at(3), (45, Some(Due::Close(CloseCode::Stalled))));
    }

    #[test]
    fn who_waits_for_its_command_is_not_silent() {
        let (_, mut life) = lifecycle(None, Heartbeat::Never);
        for _ in 0..5 {
            let now = life.deadline();
            assert_eq!(life.on_time(now, &Activity::default(), true), PING);
        }
    }

    #[test]
    fn a_sessions_page_hears_a_ping_after_a_minute_of_silence() {
        let (start, mut life) = lifecycle(None, Heartbeat::WhenSilent);
        // One batch per interval is our own ping.
        let mut at = |tick: u64, batches| {
            next(&mut life, start, &Activity { read: tick, batches, ..Activity::default() }).1
        };
        assert_eq!([at(1, 5), at(2, 6), at(3, 7), at(4, 8)], [PING; 4]);
        assert_eq!(at(5, 9), VISIBLE_PING);
        assert_eq!([at(6, 20), at(7, 21), at(8, 22), at(9, 23)], [PING; 4]);
        assert_eq!(at(10, 24), VISIBLE_PING);
    }

    #[test]
    fn a_grants_end_is_announced_a_minute_before_and_closes() {
        let (start, mut life) = lifecycle(Some(61), Heartbeat::Never);
        let activity = Activity::default();
        let notice = Some(Due::Expiring { left: Duration::from_secs(60) });
        assert_eq!(next(&mut life, start, &activity), (1, notice));
        assert_eq!(life.deadline(), start + PING_INTERVAL);
        let end = start + Duration::from_secs(61);
        let closes = Some(Due::Close(CloseCode::TokenExpired));
        assert_eq!(life.on_time(end, &activity, false), closes);
        // A short one at once.
        // A renewed one lasts as long as the new token, and is announced anew.
        life.renew(end, Some(Duration::from_secs(70)));
        assert!(!life.is_over(end));
        let later = end + Duration::from_secs(10);
        assert_eq!(life.on_time(later, &activity, false), notice);
        assert!(life.is_over(end + Duration::from_secs(70)));
        let (start, mut life) = lifecycle(Some(10), Heartbeat::Never);
        assert_eq!(next(&mut life, start, &activity).0, 0);
        assert_eq!(next(&mut life, start, &activity), (10, closes));
    }

    #[test]
    fn a_leaving_replica_closes_after_the_time_it_gave() {
        let (start, mut life) = lifecycle(None, Heartbeat::Never);
        life.leave(start, Duration::from_secs(4));
        life.leave(start + Duration::from_secs(3), Duration::from_secs(4));

        let closes = Some(Due::Close(CloseCode::Restart));
        assert_eq!(next(&mut life, start, &Activity::default()), (5, closes));
    }
}
