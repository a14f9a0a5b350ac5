//! ▼ Down: from the journals to every browser that watches.
//!
//! 1. [`feed`] follows the journals that somebody here listens to;
//! 2. [`hub`] keeps each one's [`tail`] and wakes its listeners;
//! 3. [`subscription`], a cursor, takes what it has not seen: from the tail, or, where that does not reach,
//!    from [`pages`] of the journal;
//! 4. a subscriber that joins is told which [`approvals`] wait for an answer ([`pending`]), and everybody receives the [`broadcast`].

mod approvals;
mod broadcast;
mod feed;
mod hub;
mod pages;
mod pending;
mod single_flight;
mod subscription;
mod tail;

pub(crate) use approvals::Question;
pub(crate) use broadcast::Broadcast;
pub(crate) use feed::{Events, Status};
pub(crate) use hub::{Membership, Wake, WriteNow};
pub(crate) use pages::Request;
pub(crate) use pending::Pending;
pub(crate) use single_flight::ReadError;
pub(crate) use subscription::{Next, Subscription};
