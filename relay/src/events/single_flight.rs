//! Single flight: for each key one read is under way at a time, shared by all its waiters.
//!
//! Each read runs in a task of its own, so a waiter that is not polled (its socket takes no bytes) delays no other.
//! A read ends with its last waiter. The [`Source`] decides what is read, and which waiters a read answers:
//! [`pages`](super::pages) and [`approvals`](super::approvals).

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::BoxFuture;
use journal::Unavailable;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

/// Reads, keeps what was read, and says whom it answers. Does not wait.
pub(super) trait Source: Debug + Send + 'static {
    /// One read per key at a time.
    type Key: Clone + Debug + Eq + Hash + Send;
    /// What is asked.
    type Question: Clone + Debug + Send;
    /// What one read brings.
    type Read: Send;
    /// What a question is answered with.
    type Answer: Debug + Send;

    /// What the question is about.
    fn key(question: &Self::Question) -> Self::Key;

    /// The answer, where what was kept holds it.
    fn known(&self, question: &Self::Question) -> Option<Self::Answer>;

    /// The read that is to begin.
    fn begin(&mut self, turn: &Turn<'_, Self::Question>) -> Reading<Self::Read>;

    /// Keeps what was read, for those who come later.
    fn keep(&mut self, read: &Self::Read);

    /// The answer to `question`, where the read holds it.
    fn answer(
        &self,
        read: &Self::Read,
        question: &Self::Question,
        asked: Asked,
    ) -> Option<Self::Answer>;
}

/// A read that was begun.
pub(super) type Reading<R> = BoxFuture<'static, Result<R, Unavailable>>;

/// Who waits when a read begins.
#[derive(Debug)]
pub(super) struct Turn<'a, Q> {
    /// The waiter that came first. If the read does not answer it, the next one is made for it as well.
    pub(super) first: &'a Q,
    /// The last read was for the same, and did not answer it.
    pub(super) is_second_try: bool,
    /// The waiter that came last.
    pub(super) last: &'a Q,
    /// How many wait.
    pub(super) waiting: usize,
}

/// When a question was asked, as a read sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Before the read began: what it says is not older than the question.
    pub(super) before: bool,
    /// What was read was forgotten meanwhile: it may be told to those who had asked for just that.
    pub(super) is_forgotten: bool,
}

/// Why a read has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum ReadError {
    /// Redis does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The read's task ended: a bug, or the replica stops.
    #[error("the read was ended")]
    Ended,
}

/// The reads of one source.
#[derive(Debug)]
pub(super) struct SingleFlight<S: Source> {
    shared: Arc<Mutex<Shared<S>>>,
}

#[derive(Debug)]
struct Shared<S: Source> {
    source: S,
    lines: HashMap<S::Key, Line<S>>,
    serials: u64,
    tasks: JoinSet<()>,
}

/// Those who wait for reads of one key, and the task that reads for them.
#[derive(Debug)]
struct Line<S: Source> {
    serial: u64,
    waiting: VecDeque<Waiter<S>>,
    is_forgotten: bool,
    task: AbortHandle,
}

#[derive(Debug)]
struct Waiter<S: Source> {
    serial: u64,
    question: S::Question,
    has_led: bool,
    reply: oneshot::Sender<Result<S::Answer, ReadError>>,
}

impl<S: Source> SingleFlight<S> {
    pub(super) fn new(source: S) -> Self {
        let (lines, tasks) = (HashMap::new(), JoinSet::new());
        Self { shared: Arc::new(Mutex::new(Shared { source, lines, serials: 0, tasks })) }
    }

    /// The answer, from what was kept or from a read. Dropping the future leaves the line.
    pub(super) async fn read(&self, question: &S::Question) -> Result<S::Answer, ReadError> {
        let (place, reply) = {
            let mut shared = lock(&self.shared);
            if let Some(answer) = shared.source.known(question) {
                return Ok(answer);
            }
            shared.wait(&self.shared, question)
        };
        let answer = reply.await.unwrap_or(Err(ReadError::Ended));
        place.answered();
        answer
    }

    /// What was read of this key, or, where none is given, of all, may have changed: reads that are under way are
    /// neither kept nor shared with those who come later. `forget` clears what the source has kept.
    pub(super) fn forget(&self, key: Option<&S::Key>, forget: impl FnOnce(&mut S)) {
        let mut shared = lock(&self.shared);
        match key {
            // Found and not looked for: tens of thousands may be under way, and each channel that joins forgets.
            Some(key) => {
                if let Some(line) = shared.lines.get_mut(key) {
                    line.is_forgotten = true;
                }
            }
            None => shared.lines.values_mut().for_each(|line| line.is_forgotten = true),
        }
        forget(&mut shared.source);
    }

    #[cfg(test)]
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut S, usize) -> T) -> T {
        let mut shared = lock(&self.shared);
        let lines = shared.lines.len();
        look(&mut shared.source, lines)
    }
}

impl<S: Source> Shared<S> {
    fn wait(
        &mut self,
        this: &Arc<Mutex<Self>>,
        question: &S::Question,
    ) -> (Place<S>, oneshot::Receiver<Result<S::Answer, ReadError>>) {
        let key = S::key(question);
        self.serials += 1;
        let serial = self.serials;
        let (reply, replied) = oneshot::channel();
        let waiter = Waiter { serial, question: question.clone(), has_led: false, reply };
        let place = Place { shared: Some(Arc::clone(this)), key: key.clone(), serial };
        if let Some(line) = self.lines.get_mut(&key) {
            line.waiting.push_back(waiter);
            return (place, replied);
        }
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "a read panicked");
            }
        }
        let driver = Driver { shared: Arc::clone(this), key: key.clone(), serial };
        let task = self.tasks.spawn(driver.run());
        let waiting = VecDeque::from([waiter]);
        self.lines.insert(key, Line { serial, waiting, is_forgotten: false, task });
        (place, replied)
    }

    /// Begins the line's next read; with the serial before which all had asked by now.
    fn begin(&mut self, key: &S::Key, serial: u64) -> Option<(Reading<S::Read>, u64)> {
        let line = self.lines.get_mut(key).filter(|line| line.serial == serial)?;
        line.is_forgotten = false;
        let waiting = line.waiting.len();
        let is_second_try = std::mem::replace(&mut line.waiting.front_mut()?.has_led, true);
        let (first, last) = (&line.waiting.front()?.question, &line.waiting.back()?.question);
        let reading = self.source.begin(&Turn { first, is_second_try, last, waiting });
        Some((reading, self.serials + 1))
    }

    /// Answers those whom the read answers. True where others wait still.
    fn end(
        &mut self,
        key: &S::Key,
        serial: u64,
        begun: u64,
        read: Result<S::Read, Unavailable>,
    ) -> bool {
        let Some(line) = self.lines.get_mut(key).filter(|line| line.serial == serial) else {
            return false;
        };
        match &read {
            // All waiters try again later, together.
            Err(error) => {
                line.waiting.drain(..).for_each(|one| one.tell(Err(error.clone().into())));
            }
            Ok(read) => {
                if !line.is_forgotten {
                    self.source.keep(read);
                }
                for waiter in std::mem::take(&mut line.waiting) {
                    let before = waiter.serial < begun;
                    let asked = Asked { before, is_forgotten: line.is_forgotten };
                    match self.source.answer(read, &waiter.question, asked) {
                        Some(answer) => waiter.tell(Ok(answer)),
                        None => line.waiting.push_back(waiter),
                    }
                }
            }
        }
        let is_empty = line.waiting.is_empty();
        if is_empty {
            self.lines.remove(key);
        }
        !is_empty
    }

    fn leave(&mut self, key: &S::Key, serial: u64) {
        let Some(line) = self.lines.get_mut(key) else { return };
        line.waiting.retain(|waiter| waiter.serial != serial);
        if line.waiting.is_empty() {
            line.task.abort();
            self.lines.remove(key);
        }
    }
}

impl<S: Source> Waiter<S> {
    fn tell(self, answer: Result<S::Answer, ReadError>) {
        // The waiter may be about to leave.
        drop(self.reply.send(answer));
    }
}

/// The task that reads for one line, one read after the other, until nobody waits.
struct Driver<S: Source> {
    shared: Arc<Mutex<Shared<S>>>,
    key: S::Key,
    serial: u64,
}

impl<S: Source> Driver<S> {
    async fn run(self) {
        loop {
            let Some((reading, begun)) = lock(&self.shared).begin(&self.key, self.serial) else {
                return;
            };
            let read = reading.await;
            if !lock(&self.shared).end(&self.key, self.serial, begun, read) {
                return;
            }
        }
    }
}

impl<S: Source> Drop for Driver<S> {
    /// After a panic the waiters are told so. At any other end there are no waiters left, and the code that ends
    /// the read may hold the lock.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut shared = lock(&self.shared);
        if shared.lines.get(&self.key).is_some_and(|line| line.serial == self.serial) {
            shared.lines.remove(&self.key);
        }
    }
}

/// A place in a line; dropping it leaves.
#[derive(Debug)]
struct Place<S: Source> {
    shared: Option<Arc<Mutex<Shared<S>>>>,
    key: S::Key,
    serial: u64,
}

impl<S: Source> Place<S> {
    fn answered(mut self) {
        self.shared = None;
    }
}

impl<S: Source> Drop for Place<S> {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            lock(shared).leave(&self.key, self.serial);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics with this lock held")
}

#[cfg(test)]
mod tests;
