//! Which questions wait for an answer on a channel, for a subscriber that joins it.
//!
//! A question comes and goes together with an event, in one step, so what is pending belongs to a head of the
//! journal. A subscriber that asks under a head that was seen gets what was read after that head, and the events
//! behind it tell every later change. So many joins at one head share one read, and many joins on a busy channel
//! cause one read after the other.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use futures_util::FutureExt;
use journal::Journal;
use protocol::{Channel, Kind, Offset};

use super::pending::Pending;
use super::single_flight::{Asked, ReadError, Reading, SingleFlight, Source, Turn};
use crate::memory::Memory;

/// Answers that are kept for the next one who asks under the same head.
const CACHED: usize = 256;
/// Larger ones are kept no longer than a joiner is being told of them: 16 MiB is enough for all together.
const CACHED_BYTES_MAX: usize = 64 * 1024;

/// What a subscription wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) channel: Channel,
    /// A head that this replica has seen.
    pub(crate) head: Option<Offset>,
}

/// Whether agents ask on such a channel, or what they ask is told there, too.
pub(super) fn may_stand_on(channel: &Channel) -> bool {
    matches!(channel.kind(), Kind::Session | Kind::Agent) || *channel == Channel::global_events()
}

#[derive(Debug)]
pub(super) struct Approvals(SingleFlight<ApprovalSource>);

#[derive(Debug)]
struct ApprovalSource {
    journal: Journal,
    memory: Arc<Memory>,
    cached: VecDeque<Cached>,
}

#[derive(Debug)]
struct Cached {
    question: Question,
    pending: Weak<Pending>,
    _held: Option<Arc<Pending>>,
}

#[derive(Debug)]
struct ApprovalRead {
    /// The newest head that was seen before the read began.
    question: Question,
    pending: Arc<Pending>,
}

impl Approvals {
    pub(super) fn new(journal: Journal, memory: Arc<Memory>) -> Self {
        Self(SingleFlight::new(ApprovalSource { journal, memory, cached: VecDeque::new() }))
    }

    /// What was read may have changed: of one channel, or, where none is given, of all.
    pub(super) fn forget(&self, channel: Option<&Channel>) {
        self.0.forget(channel, |source| match channel {
            Some(channel) => source.cached.retain(|one| one.question.channel != *channel),
            None => source.cached.clear(),
        });
    }

    /// Reads, or waits for a read that others wait for, too.
    pub(super) async fn read(&self, question: &Question) -> Result<Arc<Pending>, ReadError> {
        self.0.read(question).await
    }
}

impl Source for ApprovalSource {
    type Key = Channel;
    type Question = Question;
    type Read = ApprovalRead;
    type Answer = Arc<Pending>;

    fn key(question: &Question) -> Channel {
        question.channel.clone()
    }

    fn known(&self, question: &Question) -> Option<Arc<Pending>> {
        let known = self.cached.iter().filter(|cached| cached.question == *question);
        known.filter_map(|cached| cached.pending.upgrade()).next()
    }

    fn begin(&mut self, turn: &Turn<'_, Question>) -> Reading<ApprovalRead> {
        let (journal, memory) = (self.journal.clone(), Arc::clone(&self.memory));
        let question = turn.last.clone();
        async move {
            let (head, approvals) = journal.pending(&question.channel).await?;
            let questions: Vec<&str> =
                approvals.iter().map(|approval| &*approval.question).collect();
            let pending = Arc::new(Pending::new(head, &questions, &memory));
            Ok(ApprovalRead { question, pending })
        }
        .boxed()
    }

    fn keep(&mut self, read: &ApprovalRead) {
        let is_small = read.pending.bytes() <= CACHED_BYTES_MAX;
        self.cached.push_back(Cached {
            question: read.question.clone(),
            pending: Arc::downgrade(&read.pending),
            _held: is_small.then(|| Arc::clone(&read.pending)),
        });
        if self.cached.len() > CACHED {
            self.cached.pop_front();
        }
    }

    fn answer(
        &self,
        read: &ApprovalRead,
        question: &Question,
        asked: Asked,
    ) -> Option<Arc<Pending>> {
        let is_answered = asked.before || (!asked.is_forgotten && read.question == *question);
        is_answered.then(|| Arc::clone(&read.pending))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use journal::{Asks, Name, NewApproval, NewEntry, Since};

    use super::*;

    /// Each question is another agent's: one has half of the places at most.
    async fn ask(journal: &Journal, channel: &Channel, id: &str) -> Option<Offset> {
        let agent = Channel::agent(id).unwrap();
        let lease = journal.lease(&agent, id, None, None).await.unwrap();
        let new = NewApproval {
            channel: channel.clone(),
            request_id: id.into(),
            asks: Asks::Permission,
            question: "{}".into(),
            expires_in: Duration::from_secs(60),
            default: false,
            digest: None,
            durable: false,
        };
        journal.ask(lease.holder(), &new).await.unwrap();
        journal.read(&Name::events(channel.clone()), Since::Start, 9).await.unwrap().head
    }

    fn ids(pending: &Pending) -> Vec<String> {
        let approvals: Vec<serde_json::Value> = serde_json::from_str(pending.first.get()).unwrap();
        approvals.iter().map(|one| one["request_id"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn all_who_ask_under_one_head_share_one_answer() {
        let (journal, channel) = (Journal::in_memory(), Channel::session("1").unwrap());
        let head = ask(&journal, &channel, "p1").await;
        let approvals = Approvals::new(journal, Memory::new(usize::MAX));
        let question = Question { channel, head };

        let all =
            futures_util::future::join_all((0..1_000).map(|_| approvals.read(&question))).await;
        let later = approvals.read(&question).await.unwrap();

        assert_eq!((ids(&later), later.head), (vec!["p1".to_owned()], head));
        assert!(all.iter().all(|one| Arc::ptr_eq(one.as_ref().unwrap(), &later)));
    }

    #[tokio::test]
    async fn another_head_is_another_answer() {
        let (journal, channel) = (Journal::in_memory(), Channel::session("1").unwrap());
        let approvals = Approvals::new(journal.clone(), Memory::new(usize::MAX));
        let before = Question { channel: channel.clone(), head: None };
        assert!(ids(&approvals.read(&before).await.unwrap()).is_empty());

        let head = ask(&journal, &channel, "p1").await;
        let after = Question { channel, head };

        assert_eq!(ids(&approvals.read(&after).await.unwrap()), ["p1"]);
    }

    /// Head after head, all at once: nobody gets what was read before they had seen theirs.
    #[tokio::test]
    async fn a_storm_on_a_busy_channel_is_one_read() {
        let (journal, channel) = (Journal::in_memory(), Channel::session("1").unwrap());
        let approvals = Approvals::new(journal.clone(), Memory::new(usize::MAX));
        let mut heads = vec![None];
        for id in 0..50 {
            heads.push(ask(&journal, &channel, &format!("p{id}")).await);
        }

        let questions: Vec<Question> =
            heads.iter().map(|head| Question { channel: channel.clone(), head: *head }).collect();
        let all =
            futures_util::future::join_all(questions.iter().map(|one| approvals.read(one))).await;

        let mut answers: Vec<Arc<Pending>> = all.into_iter().map(Result::unwrap).collect();
        assert!(answers.iter().all(|pending| ids(pending).len() == 50));
        answers.dedup_by(|one, other| Arc::ptr_eq(one, other));
        assert_eq!(answers.len(), 1, "all had asked before the read began");
        assert_eq!(approvals.0.look(|_, lines| lines), 0);
    }

    #[tokio::test]
    async fn what_was_forgotten_is_read_anew() {
        let (journal, channel) = (Journal::in_memory(), Channel::session("1").unwrap());
        let (approvals, question) = (
            Approvals::new(journal.clone(), Memory::new(usize::MAX)),
            Question { channel: channel.clone(), head: None },
        );
        assert!(ids(&approvals.read(&question).await.unwrap()).is_empty());
        ask(&journal, &channel, "p1").await;
        assert!(ids(&approvals.read(&question).await.unwrap()).is_empty(), "kept");

        approvals.forget(Some(&Channel::session("2").unwrap()));
        assert!(ids(&approvals.read(&question).await.unwrap()).is_empty(), "another channel's");
        approvals.forget(Some(&channel));
        assert_eq!(ids(&approvals.read(&question).await.unwrap()), ["p1"]);

        let name = Name::events(channel);
        journal.append(&name, vec![NewEntry::new("x", "{}")]).await.unwrap();
        approvals.forget(None);
        assert_eq!(approvals.read(&question).await.unwrap().head.map(|head| head.n), Some(2));
    }
}
