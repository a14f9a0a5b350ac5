//! Which questions wait for an answer on a channel, for whoever joins it.
//!
//! A question comes and goes together with an event, in one step, so what is pending belongs to a head of
//! the journal: whoever asks under a head that was seen gets what was read after it, and hears of every later
//! change by the events behind it. So a storm of joins at one head is one read, and one on a busy channel is
//! one read after the other.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use journal::{Journal, Unavailable};
use protocol::{Channel, Kind, Offset};
use serde_json::value::RawValue;

/// Answers that are kept for the next one who asks under the same head.
const CACHED: usize = 256;
/// Larger ones are not kept: 16 MiB is enough for all together.
const CACHED_BYTES_MAX: usize = 64 * 1024;

/// What a subscription wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) channel: Channel,
    /// A head that this replica has seen.
    pub(crate) head: Option<Offset>,
}

/// What waits for an answer.
#[derive(Debug)]
pub(crate) struct Pending {
    /// As of which event.
    pub(super) head: Option<Offset>,
    /// A list, as JSON.
    pub(super) approvals: Box<RawValue>,
}

/// Whether agents ask on such a channel.
pub(super) fn may_stand_on(channel: &Channel) -> bool {
    matches!(channel.kind(), Kind::Session | Kind::Agent)
}

type Answer = Result<Arc<Pending>, Unavailable>;

#[derive(Debug)]
pub(super) struct Approvals {
    journal: Journal,
    cache: Arc<Mutex<Cache>>,
}

#[derive(Debug, Default)]
struct Cache {
    lines: HashMap<Channel, Line>,
    cached: VecDeque<(Question, Arc<Pending>)>,
    serials: u64,
}

/// One read of a channel is under way at a time. Who comes meanwhile, with another head, shares the next.
#[derive(Debug)]
struct Line {
    now: Reading,
    next: Option<Reading>,
}

#[derive(Clone)]
struct Reading {
    serial: u64,
    /// A head that was seen before the read began.
    head: Option<Offset>,
    answer: Shared<BoxFuture<'static, Answer>>,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("head", &self.head).finish_non_exhaustive()
    }
}

impl Approvals {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, cache: Arc::default() }
    }

    /// What was read may have changed: of one channel, or, where none is given, of all.
    pub(super) fn forget(&self, channel: Option<&Channel>) {
        let mut cache = lock(&self.cache);
        let stays = |of: &Channel| channel.is_some_and(|it| of != it);
        cache.lines.retain(|of, _| stays(of));
        cache.cached.retain(|(question, _)| stays(&question.channel));
    }

    /// Reads, or waits for a read that others wait for, too.
    pub(super) async fn read(&self, question: &Question) -> Answer {
        let answer = {
            let mut cache = lock(&self.cache);
            if let Some((_, pending)) = cache.cached.iter().find(|(cached, _)| cached == question) {
                return Ok(Arc::clone(pending));
            }
            cache.serials += 1;
            let (serial, head) = (cache.serials, question.head);
            let begin = |after| {
                let answer = self.begin(question.channel.clone(), serial, after);
                Reading { serial, head, answer }
            };
            match cache.lines.get_mut(&question.channel) {
                None => {
                    let now = begin(None);
                    let answer = now.answer.clone();
                    cache.lines.insert(question.channel.clone(), Line { now, next: None });
                    answer
                }
                Some(line) if line.now.head == head => line.now.answer.clone(),
                Some(line) => {
                    let Line { now, next } = line;
                    let next = next.get_or_insert_with(|| begin(Some(now.answer.clone())));
                    next.head = head;
                    next.answer.clone()
                }
            }
        };
        answer.await
    }

    /// A read of its own task: whoever asked may leave, others still wait for it.
    fn begin(
        &self,
        channel: Channel,
        serial: u64,
        after: Option<Shared<BoxFuture<'static, Answer>>>,
    ) -> Shared<BoxFuture<'static, Answer>> {
        let (journal, cache) = (self.journal.clone(), Arc::clone(&self.cache));
        let task = tokio::spawn(async move {
            if let Some(before) = after {
                drop(before.await);
                lock(&cache).promote(&channel, serial);
            }
            let answer = journal.pending(&channel).await.map(|(head, approvals)| {
                let approvals: Vec<&str> =
                    approvals.iter().map(|approval| &*approval.question).collect();
                let approvals = RawValue::from_string(format!("[{}]", approvals.join(",")));
                Arc::new(Pending { head, approvals: approvals.unwrap_or_else(|_| none()) })
            });
            lock(&cache).done(channel, serial, &answer);
            answer
        });
        task.map(|joined| joined.unwrap_or_else(|_| Ok(Arc::new(nothing())))).boxed().shared()
    }
}

impl Cache {
    /// The next read begins: whoever comes from now on with a head that it has not seen is too late for it.
    fn promote(&mut self, channel: &Channel, serial: u64) {
        if let Some(line) = self.lines.get_mut(channel)
            && let Some(next) = line.next.take_if(|next| next.serial == serial)
        {
            line.now = next;
        }
    }

    /// A read came to its end. One that was forgotten meanwhile is not kept.
    fn done(&mut self, channel: Channel, serial: u64, answer: &Answer) {
        let Some(line) = self.lines.get(&channel).filter(|line| line.now.serial == serial) else {
            return;
        };
        let head = line.now.head;
        if line.next.is_none() {
            self.lines.remove(&channel);
        }
        if let Ok(pending) = answer
            && pending.approvals.get().len() <= CACHED_BYTES_MAX
        {
            self.cached.push_back((Question { channel, head }, Arc::clone(pending)));
            if self.cached.len() > CACHED {
                self.cached.pop_front();
            }
        }
    }
}

fn none() -> Box<RawValue> {
    RawValue::from_string("[]".to_owned()).expect("an empty list is JSON")
}

/// What a read that was torn down at shutdown comes to.
fn nothing() -> Pending {
    Pending { head: None, approvals: none() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics with this lock held")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use journal::{Asks, Name, NewApproval, NewEntry, Since};

    use super::*;

    async fn ask(journal: &Journal, channel: &Channel, id: &str) -> Option<Offset> {
        let agent = Channel::agent("a").unwrap();
        let lease = journal.lease(&agent, "a", None, None).await.unwrap();
        let new = NewApproval {
            channel: channel.clone(),
            request_id: id.into(),
            asks: Asks::Permission,
            data: "{}".into(),
            expires_in: Duration::from_secs(60),
            default: false,
            digest: None,
        };
        journal.ask(lease.holder(), &new).await.unwrap();
        journal.read(&Name::events(channel.clone()), Since::Start, 9).await.unwrap().head
    }

    fn ids(pending: &Pending) -> Vec<String> {
        let approvals: Vec<serde_json::Value> =
            serde_json::from_str(pending.approvals.get()).unwrap();
        approvals.iter().map(|one| one["request_id"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn all_who_ask_under_one_head_share_one_answer() {
        let (journal, channel) = (Journal::in_memory(), Channel::session("1").unwrap());
        let head = ask(&journal, &channel, "p1").await;
        let approvals = Approvals::new(journal);
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
        let approvals = Approvals::new(journal.clone());
        let before = Question { channel: channel.clone(), head: None };
        assert!(ids(&approvals.read(&before).await.unwrap()).is_empty());

        let head = ask(&journal, &channel, "p1").await;
        let after = Question { channel, head };

        assert_eq!(ids(&approvals.read(&after).await.unwrap()), ["p1"]);
    }

    /// Head after head, all at once: nobody gets what was read before he had seen his.
    #[tokio::test]
    async fn a_storm_on_a_busy_channel_is_a_few_reads() {
        let (journal, channel) = (Journal::in_memory(), Channel::session("1").unwrap());
        let approvals = Approvals::new(journal.clone());
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
        assert_eq!(answers.len(), 2, "the first one's, and that of all others");
        assert!(lock(&approvals.cache).lines.is_empty());
    }

    #[tokio::test]
    async fn what_was_forgotten_is_read_anew() {
        let (journal, channel) = (Journal::in_memory(), Channel::session("1").unwrap());
        let (approvals, question) =
            (Approvals::new(journal.clone()), Question { channel: channel.clone(), head: None });
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
