//! What an append takes and gives.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use protocol::Offset;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a producer's newest sequence is remembered after the last keeping.
pub(crate) const PRODUCER_RECORD_LIFETIME: Duration = Duration::from_secs(900);

/// An entry on its way into a journal. Names and data are the caller's to check
/// ([`protocol::check_event_name`], [`protocol::check_data`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The event's or the command's name.
    pub name: Box<str>,
    /// The data, JSON.
    pub data: Box<str>,
    /// For 15 minutes, the same entry with the same id on the same journal counts as this one, from any producer;
    /// another entry with this id is refused.
    pub idempotency_key: Option<Box<str>>,
}

impl NewEntry {
    /// An entry without an idempotency key.
    pub fn new(name: impl Into<Box<str>>, data: impl Into<Box<str>>) -> Self {
        Self { name: name.into(), data: data.into(), idempotency_key: None }
    }

    /// The same with an idempotency key ([`protocol::check_idempotency_key`]).
    pub fn with_key(self, id: impl Into<Box<str>>) -> Self {
        Self { idempotency_key: Some(id.into()), ..self }
    }

    /// What the entry takes in a buffer, its share of the bookkeeping included.
    pub(crate) fn cost(&self) -> usize {
        self.name.len() + self.data.len() + 64
    }
}

/// Where an entry was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its position; `None` if it was appended before and its position is not known any more.
    pub offset: Option<Offset>,
    /// How many links followed the journal at that moment: replicas for events, agents for commands.
    pub listeners: u64,
}

/// Why entries were not appended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AppendError {
    /// Too much is waiting to be appended.
    #[error("the append buffer is full: Redis is away or slower than the writers")]
    Full,
    /// The buffer could never hold these entries.
    #[error("{bytes} bytes in one append are more than the buffer of {limit} holds")]
    TooLarge {
        /// What was given.
        bytes: usize,
        /// What the buffer holds.
        limit: usize,
    },
    /// Redis refused; the entries are not in the journal.
    #[error("redis refused the append: {0}")]
    Refused(String),
    /// Redis could not be reached or refused for as long as was waited; the entries are not in the journal,
    /// and will not be.
    #[error("redis cannot be reached or takes no appends; nothing was appended")]
    NotAppended,
    /// Redis did not answer for as long as was waited, or the process ends. The outcome is unknown.
    #[error("redis did not answer; it is unknown whether the entries were appended")]
    Unavailable,
    /// The idempotency key was used on this journal, for an entry in which this part was another. Nothing was
    /// appended.
    #[error("this `id` was used on this channel with another `{0}`")]
    Conflict(&'static str),
    /// A newer incarnation of this producer writes now, or it was declared lost.
    #[error("a newer incarnation of this producer has taken over, or it was declared lost")]
    Fenced,
}

impl AppendError {
    /// Whether the same append, tried again later, can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::NotAppended | Self::Unavailable)
    }

    /// Whether it is certain that nothing was appended.
    pub fn had_no_effect(&self) -> bool {
        !matches!(self, Self::Unavailable)
    }
}

/// The result of an append.
pub(crate) type AppendOutcome = Result<Vec<Appended>, AppendError>;

/// Resolves when the entries are in the journal. May be dropped: the append goes on.
#[derive(Debug)]
pub struct Receipt(ReceiptState);

#[derive(Debug)]
enum ReceiptState {
    Done(Option<AppendOutcome>),
    Waiting(oneshot::Receiver<AppendOutcome>, Arc<Claim>),
}

/// Who decides about an append that waits: its caller, who may take it back, or who sends it.
#[derive(Debug, Default)]
pub(crate) struct Claim(AtomicU8);

impl Claim {
    const WAITS: u8 = 0;
    const SENT: u8 = 1;
    const WITHDRAWN: u8 = 2;

    /// It is sent now: false where it was taken back.
    pub(crate) fn send(&self) -> bool {
        let sent = self.change(Self::WAITS, Self::SENT);
        sent || self.0.load(Ordering::SeqCst) == Self::SENT
    }

    /// It was sent, and nothing came of it: it waits again.
    pub(crate) fn was_refused(&self) {
        self.change(Self::SENT, Self::WAITS);
    }

    pub(crate) fn withdraw(&self) -> bool {
        self.change(Self::WAITS, Self::WITHDRAWN)
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Receipt {
    pub(crate) fn done(outcome: AppendOutcome) -> Self {
        Self(ReceiptState::Done(Some(outcome)))
    }

    pub(crate) fn waiting(outcome: oneshot::Receiver<AppendOutcome>, claim: Arc<Claim>) -> Self {
        Self(ReceiptState::Waiting(outcome, claim))
    }

    /// Waits until `deadline` at the latest. What has not been sent by then, or was sent and refused, is taken
    /// back.
    ///
    /// # Errors
    /// [`AppendError::NotAppended`] where the append was taken back, [`AppendError::Unavailable`] where it is
    /// under way.
    pub async fn until(mut self, deadline: Instant) -> Result<Vec<Appended>, AppendError> {
        if let Ok(outcome) = tokio::time::timeout_at(deadline, &mut self).await {
            return outcome;
        }
        match &self.0 {
            ReceiptState::Waiting(_, claim) if claim.withdraw() => Err(AppendError::NotAppended),
            _ => Err(AppendError::Unavailable),
        }
    }
}

impl Future for Receipt {
    type Output = AppendOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<AppendOutcome> {
        match &mut self.0 {
            // Polled again after it was ready, which a future does not support.
            ReceiptState::Done(outcome) => {
                Poll::Ready(outcome.take().unwrap_or(Err(AppendError::Unavailable)))
            }
            ReceiptState::Waiting(receiver, _) => Pin::new(receiver)
                .poll(cx)
                .map(|sent| sent.unwrap_or(Err(AppendError::Unavailable))),
        }
    }
}
