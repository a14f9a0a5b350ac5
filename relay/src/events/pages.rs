//! Pages of journals, for browsers whose cursor the tail does not reach.
//!
//! A storm of resumes on one channel is one read: pages begin at multiples of [`PAGE`], so that everybody
//! who is far behind needs the same ones, and identical questions share one answer. A shared answer may be
//! older than the question, so it may only *confirm* a position; to deny one, Redis is asked anew.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use journal::{Journal, Name, Page, Since, Unavailable};
use protocol::{Entry, Offset};

/// Entries in a page.
const PAGE: u64 = 1000;
/// Full pages that are kept for the next one who needs them: at most 16 MiB.
const CACHED: usize = 16;

/// What a subscription wants to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) name: Name,
    pub(crate) since: Since,
    /// The newest position that this replica knows: tells whether a whole page can be asked for.
    pub(crate) head: Option<Offset>,
    /// Nothing was delivered yet.
    pub(crate) is_join: bool,
}

type Answer = Result<Arc<Page>, Unavailable>;
type Question = (Name, Key);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Start,
    /// Exactly after this position.
    After(Offset),
    /// The entries from `number * PAGE` to `(number + 1) * PAGE`, both included: the last entry of one
    /// page is the first of the next, so that every step is checked like a resume.
    Aligned {
        epoch: u64,
        number: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Pages {
    journal: Journal,
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    reading: HashMap<Question, Shared<BoxFuture<'static, Answer>>>,
    cached: VecDeque<(Question, Arc<Page>)>,
    /// Pages read before the link was last remade are not kept.
    generation: u64,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").field("reading", &self.reading.len()).finish_non_exhaustive()
    }
}

impl Pages {
    pub(crate) fn new(journal: Journal) -> Self {
        Self { journal, shelf: Arc::default() }
    }

    /// What was read may have changed: a server may have come back with another history.
    pub(crate) fn forget(&self) {
        let mut shelf = lock(&self.shelf);
        shelf.cached.clear();
        shelf.generation += 1;
    }

    /// The page that answers the request.
    pub(crate) async fn read(&self, request: &Request) -> Result<Page, Unavailable> {
        let name = &request.name;
        let position = match request.since {
            Since::Start => return self.share(name, Key::Start).await.map(|page| (*page).clone()),
            Since::Offset(position) => position,
        };
        let number = position.n / PAGE;
        let end = number.saturating_add(1).saturating_mul(PAGE);
        let is_whole =
            request.head.is_some_and(|head| head.epoch == position.epoch && head.n >= end);
        if is_whole {
            let key = Key::Aligned { epoch: position.epoch, number };
            let page = self.share(name, key).await?;
            if let Some(page) = continued(&page, key, &position) {
                return Ok(page);
            }
        }
        let key = Key::After(position);
        let page = self.share(name, key).await?;
        match continued(&page, key, &position) {
            Some(page) => Ok(page),
            None => self.journal.read(name, request.since, PAGE as usize).await,
        }
    }

    /// Reads, or waits for somebody else's same read.
    async fn share(&self, name: &Name, key: Key) -> Answer {
        let question = (name.clone(), key);
        let reading = {
            let mut shelf = lock(&self.shelf);
            if let Some((_, page)) = shelf.cached.iter().find(|(cached, _)| *cached == question) {
                return Ok(Arc::clone(page));
            }
            match shelf.reading.get(&question) {
                Some(reading) => reading.clone(),
                None => {
                    let reading = self.start(question.clone(), shelf.generation);
                    shelf.reading.insert(question, reading.clone());
                    reading
                }
            }
        };
        reading.await
    }

    /// A read of its own task: whoever asked may leave, others still wait for it.
    fn start(&self, question: Question, generation: u64) -> Shared<BoxFuture<'static, Answer>> {
        let (journal, shelf) = (self.journal.clone(), Arc::clone(&self.shelf));
        let task = tokio::spawn(async move {
            let (since, most) = match question.1 {
                Key::Start => (Since::Start, PAGE),
                Key::After(position) => (Since::Offset(position), PAGE),
                Key::Aligned { epoch, number } => {
                    (Since::Offset(Offset::before(epoch, number * PAGE)), PAGE + 1)
                }
            };
            let answer = journal.read(&question.0, since, most as usize).await.map(Arc::new);
            let mut shelf = lock(&shelf);
            shelf.reading.remove(&question);
            if let (Key::Aligned { .. }, Ok(page)) = (question.1, &answer)
                && page.entries.len() as u64 == PAGE + 1
                && shelf.generation == generation
            {
                shelf.cached.push_back((question, Arc::clone(page)));
                if shelf.cached.len() > CACHED {
                    shelf.cached.pop_front();
                }
            }
            answer
        });
        task.map(|joined| joined.unwrap_or_else(|_| Ok(Arc::new(nothing())))).boxed().shared()
    }
}

/// The part of a shared page after `position`; `None` where it does not confirm the position, or holds
/// nothing after it.
fn continued(page: &Page, key: Key, position: &Offset) -> Option<Page> {
    if page.reset.is_some() {
        return None;
    }
    let entries: Vec<Arc<Entry>> = match key {
        // Asked for exactly: the journal itself confirmed it.
        Key::After(_) | Key::Start => page.entries.clone(),
        Key::Aligned { .. } => {
            let own = page.entries.iter().position(|entry| entry.offset.n == position.n)?;
            let is_same = position.check == 0 || page.entries[own].offset == *position;
            let rest = page.entries.get(own + 1..).filter(|rest| is_same && !rest.is_empty())?;
            rest.to_vec()
        }
    };
    Some(Page { reset: None, start: Some(*position), entries, head: page.head })
}

/// What a read that was torn down at shutdown comes to: nothing new.
fn nothing() -> Page {
    Page { reset: None, start: None, entries: Vec::new(), head: None }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics with this lock held")
}
