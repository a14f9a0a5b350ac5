//! How fast a sender may have Redis keep more, in bytes. What a channel keeps is bounded where it is kept; the number of channels,
//! commands and questions that one caller can make up is bounded by nothing else.
//!
//! [`command`](crate::state::command) and the relay → **growth**. Each process counts in its own memory.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::sync::Mutex;
use std::time::Duration;

use protocol::limits::{
    KEPT_BRIEFLY_BYTES_BURST, KEPT_BRIEFLY_BYTES_PER_SECOND, KEPT_LONG_BYTES_BURST,
    KEPT_LONG_BYTES_PER_SECOND, UNSERVED_BYTES_BURST, UNSERVED_BYTES_PER_SECOND,
};
use tokio::time::Instant;

use crate::{NewApproval, NewCommand, WaitingClass};

/// So many accounts are kept before those are forgotten that may take all at once again.
const ACCOUNTS: usize = 4_096;
/// What stands in Redis beside the data of a command that nobody takes, about: its entry twice, its state, its place and
/// its deadline.
const UNSERVED_BYTES: usize = 1_024;
/// What stands there besides, about, where no agent has served the channel: two journals that nothing else has made.
const UNKNOWN_BYTES: usize = 8 * 1_024;
/// What stays of a command for ten minutes after its end, about, beside what its agent says.
const OUTCOME_BYTES: usize = 512;
/// What stands in Redis beside the data of a question, about: its state, its place and its deadline.
const QUESTION_BYTES: usize = 1_024;
/// What stands there, about, of a journal that was not there before, and of a lease, which is remembered after its end.
const NEW_BYTES: usize = 1_024;

/// What is kept, by how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// Commands that nobody is there to take: until they expire.
    Unserved {
        /// Cancels have a pace of their own: no flood of others stops them.
        is_cancel: bool,
    },
    /// What commands, requests, the ends of runs and the ids of publishes leave behind: an hour at most.
    Briefly {
        /// Likewise.
        is_cancel: bool,
    },
    /// Questions, and what is on a channel that was not there before: a day or longer.
    Long,
}

impl Kept {
    /// Bytes a second, and how many at once.
    fn pace(self) -> (usize, usize) {
        match self {
            Self::Unserved { .. } => (UNSERVED_BYTES_PER_SECOND, UNSERVED_BYTES_BURST),
            Self::Briefly { .. } => (KEPT_BRIEFLY_BYTES_PER_SECOND, KEPT_BRIEFLY_BYTES_BURST),
            Self::Long => (KEPT_LONG_BYTES_PER_SECOND, KEPT_LONG_BYTES_BURST),
        }
    }
}

/// A sender may not have more kept now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFast {
    kept: Kept,
    /// How much later it may.
    pub wait: Duration,
}

impl Display for TooFast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kept {
            Kept::Unserved { .. } => {
                "nobody is there to take the command, and what one sender leaves of such"
            }
            Kept::Briefly { .. } => "what is kept of one sender's commands and their replies",
            Kept::Long => "what is kept of one sender's questions and new channels",
        };
        let (per_second, burst) = self.kept.pace();
        write!(f, "{what} is limited to {per_second} bytes a second, {burst} at once")
    }
}

impl std::error::Error for TooFast {}

/// The pace of each sender.
#[derive(Debug, Default)]
pub struct Growth {
    /// Until when the bytes are used up, if each second brings some.
    used_until: Mutex<HashMap<Kept, HashMap<Box<str>, Instant>>>,
}

impl Growth {
    /// Whether `sender` may have so many bytes more kept now.
    ///
    /// # Errors
    /// [`TooFast`].
    pub fn admit(&self, sender: &str, kept: Kept, bytes: usize) -> Result<(), TooFast> {
        let (_, burst) = kept.pace();
        self.take(sender, kept, bytes, |ahead| match ahead.checked_sub(lasts(kept, burst)) {
            Some(wait) if !wait.is_zero() => Err(TooFast { kept, wait }),
            _ => Ok(()),
        })
    }

    /// [`admit`](Self::admit) for a command that so many agents are there to receive. `is_known`: some agent has served
    /// its channel.
    pub(crate) fn admit_command(
        &self,
        new: &NewCommand,
        listeners: u64,
        is_known: bool,
    ) -> Result<(), TooFast> {
        let is_cancel = new.class != WaitingClass::Ordinary;
        let admit = |kept, beside| self.admit(&new.sender, kept, new.data.len() + beside);
        match listeners {
            0 if new.may_wait => {
                let journals = if is_known { 0 } else { UNKNOWN_BYTES };
                admit(Kept::Unserved { is_cancel }, UNSERVED_BYTES + journals)
            }
            // It is refused, and nothing is kept of it.
            0 => Ok(()),
            _ => admit(Kept::Briefly { is_cancel }, OUTCOME_BYTES),
        }
    }

    /// [`admit`](Self::admit) for a question.
    ///
    /// # Errors
    /// [`TooFast`].
    pub fn admit_question(&self, sender: &str, question: &NewApproval) -> Result<(), TooFast> {
        self.admit(sender, Kept::Long, question.question.len() + QUESTION_BYTES)
    }

    /// Counts what is kept already: the next that is kept waits for it.
    pub fn charge(&self, sender: &str, kept: Kept, bytes: usize) {
        self.take(sender, kept, bytes, |_| Ok(())).expect("nothing refuses it");
    }

    /// Counts a journal, or a lease, that was not there before.
    pub fn charge_new(&self, sender: &str) {
        self.charge(sender, Kept::Long, NEW_BYTES);
    }

    /// Waits until `sender` may have so many bytes more kept. Cancel-safe.
    pub async fn wait(&self, sender: &str, kept: Kept, bytes: usize) {
        while let Err(refused) = self.admit(sender, kept, bytes) {
            tokio::time::sleep(refused.wait).await;
        }
    }

    /// The same, where that is not later than `deadline`.
    ///
    /// # Errors
    /// [`TooFast`], at once.
    pub async fn wait_until(
        &self,
        sender: &str,
        kept: Kept,
        bytes: usize,
        deadline: Instant,
    ) -> Result<(), TooFast> {
        while let Err(refused) = self.admit(sender, kept, bytes) {
            if Instant::now() + refused.wait > deadline {
                return Err(refused);
            }
            tokio::time::sleep(refused.wait).await;
        }
        Ok(())
    }

    /// `may`: given how far ahead of the time its bytes are.
    fn take(
        &self,
        sender: &str,
        kept: Kept,
        bytes: usize,
        may: impl FnOnce(Duration) -> Result<(), TooFast>,
    ) -> Result<(), TooFast> {
        let now = Instant::now();
        let mut used_until = self.used_until.lock().expect("no code panics with this lock held");
        let accounts = used_until.entry(kept).or_default();
        let next = accounts.get(sender).map_or(now, |until| now.max(*until)) + lasts(kept, bytes);
        may(next - now)?;
        match accounts.get_mut(sender) {
            Some(until) => *until = next,
            None if bytes > 0 => {
                if accounts.len() >= ACCOUNTS {
                    accounts.retain(|_, until| *until > now);
                }
                accounts.insert(sender.into(), next);
            }
            None => {}
        }
        Ok(())
    }
}

/// In what time so many bytes come.
fn lasts(kept: Kept, bytes: usize) -> Duration {
    let (per_second, _) = kept.pace();
    Duration::from_secs(bytes as u64) / per_second as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1_024;
    const COMMAND: Kept = Kept::Unserved { is_cancel: false };
    const CANCEL: Kept = Kept::Unserved { is_cancel: true };

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_then_as_many_bytes_as_time_allows_and_cancels_for_themselves() {
        let growth = Growth::default();
        let burst =
            (0..1_000).take_while(|_| growth.admit("ada", COMMAND, 64 * KIB).is_ok()).count();
        assert_eq!(burst, 64, "4 MiB");
        let wait = growth.admit("ada", COMMAND, 64 * KIB).unwrap_err().wait;
        assert_eq!(wait, Duration::from_secs(1));
        for (sender, kept) in [("ada", CANCEL), ("ada", Kept::Long), ("ben", COMMAND)] {
            assert_eq!(growth.admit(sender, kept, 64 * KIB), Ok(()), "{sender} {kept:?}");
        }

        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(growth.admit("ada", COMMAND, 64 * KIB), Ok(()));
        assert!(growth.admit("ada", COMMAND, 64 * KIB).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_already_is_paid_for_before_more_is_kept() {
        let (growth, kept) = (Growth::default(), Kept::Briefly { is_cancel: false });
        growth.charge("ada", kept, KEPT_BRIEFLY_BYTES_BURST + 2 * KEPT_BRIEFLY_BYTES_PER_SECOND);
        assert_eq!(growth.admit("ada", kept, 0).unwrap_err().wait, Duration::from_secs(2));

        let start = Instant::now();
        growth.wait("ada", kept, KEPT_BRIEFLY_BYTES_PER_SECOND).await;
        assert_eq!(start.elapsed().as_secs(), 3);
        let (deadline, bytes) = (Instant::now(), KEPT_BRIEFLY_BYTES_PER_SECOND);
        assert!(growth.wait_until("ada", kept, bytes, deadline).await.is_err());
        let deadline = deadline + Duration::from_secs(1);
        assert_eq!(growth.wait_until("ada", kept, bytes, deadline).await, Ok(()));
    }

    /// 10,000 channels are a promise: their leases, their first events, and a question on each.
    #[tokio::test(start_paused = true)]
    async fn an_agent_with_10_000_channels_and_their_questions_is_not_slowed_down() {
        let growth = Growth::default();
        for _ in 0..10_000 {
            for bytes in [NEW_BYTES, NEW_BYTES, QUESTION_BYTES + 3 * KIB] {
                assert_eq!(growth.admit("ada", Kept::Long, bytes), Ok(()));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn senders_that_may_send_all_at_once_again_are_forgotten() {
        let growth = Growth::default();
        for n in 0..ACCOUNTS {
            growth.admit(&n.to_string(), COMMAND, KIB).expect("the first of each");
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        growth.admit("late", COMMAND, KIB).expect("the first of its own");
        assert_eq!(growth.used_until.lock().expect("it is free")[&COMMAND].len(), 1);
    }
}
