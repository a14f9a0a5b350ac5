//! ◆ Which agents were spawned by which: a Cancel of the parent, or of the session on which its run was
//! begun, reaches the children.
//!
//! Each child stands with the time of its adoption, by the journal's clock, so that a [`walk`](super::walk) that
//! goes on after its Cancel leaves alone what came later.

use protocol::limits::CHILDREN_MAX;
use protocol::{Channel, Parent};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::lease::{self, LeasePhase, LeaseState, REMEMBERED};
use super::transact::read;
use super::{Change, Condition, Decision, Effect, Holder, Index, Record, RecordKind, Transacted};
use crate::{Journal, Unavailable};

/// Why an agent is not another's child.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The parent, or the session of its run, has as many children as it may.
    #[error("`{0}` has {CHILDREN_MAX} children already, which is the limit")]
    Full(Channel),
    /// The journal could not be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Where a Cancel may be sent that reaches the child.
fn channels(parent: &Parent) -> impl Iterator<Item = Channel> {
    Channel::agent(&parent.agent_id).ok().into_iter().chain(parent.session.clone())
}

/// A child on its parent's channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ChildState {
    incarnation: u64,
    /// Since when it is one, Unix milliseconds. `None`: it is one no more; that is kept, so that an older
    /// incarnation does not undo it.
    adopted_at: Option<u64>,
}

/// The child comes or goes, unless a newer incarnation of it has spoken before. Whether it was one.
fn declared(
    found: Option<ChildState>,
    now_ms: u64,
    child: &Holder,
    run: Option<&str>,
) -> Decision<bool> {
    if found.as_ref().is_some_and(|state| state.incarnation > child.incarnation) {
        return Decision::Keep(true);
    }
    let before = found.and_then(|state| {
        // The same life, declared again, is as old as it was.
        state.adopted_at.filter(|_| state.incarnation == child.incarnation)
    });
    let adopted_at = run.map(|_| before.unwrap_or(now_ms));
    let mut change = Change::new(&ChildState { incarnation: child.incarnation, adopted_at });
    change.lifetime = Some(REMEMBERED);
    match (run, adopted_at) {
        (Some(run), Some(at)) => {
            change.condition = Condition::Room(Index::Children, CHILDREN_MAX as u64);
            let value = format!("{at} {run}").into();
            change.effects = vec![Effect::Put(Index::Children, child.agent.clone(), value)];
        }
        _ => change.effects = vec![Effect::Remove(Index::Children, child.agent.clone())],
    }
    Decision::Set(change, before.is_some())
}

impl Journal {
    /// Declares `child` as spawned by `parent`: a Cancel of the parent reaches it as well. Nothing changes
    /// if a newer incarnation of the child has been declared.
    ///
    /// # Errors
    /// [`AdoptError`]. After `Full` the child is nobody's that it was not before.
    pub async fn adopt(&self, parent: &Parent, child: &Holder) -> Result<(), AdoptError> {
        let run = parent.run_id.as_deref().unwrap_or_default();
        let mut added = Vec::new();
        for channel in channels(parent) {
            match self.adopt_on(&channel, child, run).await? {
                Some(true) => {}
                Some(false) => added.push(channel),
                None => {
                    for channel in &added {
                        self.declare(channel, child, None).await?;
                    }
                    return Err(AdoptError::Full(channel));
                }
            }
        }
        Ok(())
    }

    /// The same, of an agent whose lease Redis had lost: it lives on, also where others have its place by now.
    pub(super) async fn adopt_again(
        &self,
        parent: &Parent,
        child: &Holder,
    ) -> Result<(), Unavailable> {
        match self.adopt(parent, child).await {
            Ok(()) => Ok(()),
            Err(AdoptError::Unavailable(error)) => Err(error),
            Err(full) => {
                tracing::warn!(agent = %child.agent, error = %full, "an agent receives its parent's cancels no more");
                Ok(())
            }
        }
    }

    /// Whether it was a child there before; `None` where there is no room for it.
    async fn adopt_on(
        &self,
        channel: &Channel,
        child: &Holder,
        run: &str,
    ) -> Result<Option<bool>, Unavailable> {
        let adopted = self.declare(channel, child, Some(run)).await?.done();
        if adopted.is_some() {
            return Ok(adopted);
        }
        // Those that have gone without a word hold no place.
        self.forget_the_dead(channel).await?;
        Ok(self.declare(channel, child, Some(run)).await?.done())
    }

    /// The children of an agent, or of the runs begun on a session; with a run, those that belong to it.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn children(
        &self,
        channel: &Channel,
        run_id: Option<&str>,
    ) -> Result<Vec<Box<str>>, Unavailable> {
        self.adopted_by(channel, run_id, u64::MAX).await
    }

    /// Those of the [children](Self::children) that were adopted up to this time, Unix milliseconds.
    pub(super) async fn adopted_by(
        &self,
        channel: &Channel,
        run_id: Option<&str>,
        until_ms: u64,
    ) -> Result<Vec<Box<str>>, Unavailable> {
        let children = self.list(channel, &Index::Children).await?;
        let is_meant = |value: &str| {
            let (at, run) = value.split_once(' ').unwrap_or_default();
            let is_in_time = at.parse().is_ok_and(|at: u64| at <= until_ms);
            is_in_time && run_id.is_none_or(|id| id == run)
        };
        let meant = children.into_iter().filter(|(_, value)| is_meant(value));
        Ok(meant.map(|(child, _)| child).collect())
    }

    /// No longer a child, unless a newer incarnation of it is one.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn disown(&self, parent: &Parent, child: &Holder) -> Result<(), Unavailable> {
        for channel in channels(parent) {
            self.declare(&channel, child, None).await?;
        }
        Ok(())
    }

    async fn declare(
        &self,
        channel: &Channel,
        child: &Holder,
        run: Option<&str>,
    ) -> Result<Transacted<bool>, Unavailable> {
        let record = record(channel, &child.agent);
        self.transact(&record, |found, now_ms| declared(found, now_ms, child, run)).await
    }

    /// Children without a lease leave the list. One that lives, and whose lease Redis has lost, declares itself
    /// anew together with its lease.
    async fn forget_the_dead(&self, channel: &Channel) -> Result<(), Unavailable> {
        let children = self.children(channel, None).await?;
        let own = |child: &str| Some(lease::record(&Channel::agent(child).ok()?, child));
        let leases: Vec<Record> = children.iter().filter_map(|child| own(child)).collect();
        for (lease, state) in leases.iter().zip(self.states(&leases).await?) {
            let state: Option<LeaseState> = read(lease, state.as_deref());
            if state.is_some_and(|state| state.phase == LeasePhase::Alive) {
                continue;
            }
            let record = record(channel, &lease.id);
            let declared = self.state::<ChildState>(&record).await?;
            let incarnation = declared.map_or(0, |state| state.incarnation);
            let child = Holder { agent: lease.id.clone(), incarnation };
            self.declare(channel, &child, None).await?;
        }
        Ok(())
    }
}

fn record(channel: &Channel, child: &str) -> Record {
    Record { kind: RecordKind::Child, channel: channel.clone(), id: child.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(incarnation: u64) -> Holder {
        Holder { agent: "c".into(), incarnation }
    }

    #[test]
    fn an_older_incarnation_of_a_child_changes_nothing() {
        for adopted_at in [Some(1), None] {
            let found = Some(ChildState { incarnation: 2, adopted_at });
            for run in [Some("r1"), None] {
                let declared = |incarnation| declared(found.clone(), 9, &child(incarnation), run);
                assert!(matches!(declared(1), Decision::Keep(_)));
                assert!(matches!(declared(2), Decision::Set(..)));
            }
        }
        assert!(matches!(declared(None, 9, &child(1), Some("")), Decision::Set(..)));
    }

    #[test]
    fn a_child_is_as_old_as_its_first_adoption_in_this_life() {
        for (found, at) in [
            (None, "9 r1"),
            (Some((2, Some(5))), "5 r1"),
            (Some((1, Some(5))), "9 r1"),
            (Some((2, None)), "9 r1"),
        ] {
            let found =
                found.map(|(incarnation, adopted_at)| ChildState { incarnation, adopted_at });
            let Decision::Set(change, _) = declared(found, 9, &child(2), Some("r1")) else {
                panic!("{at}")
            };
            let [Effect::Put(_, _, value)] = &change.effects[..] else { panic!("{change:?}") };
            assert_eq!(&**value, at);
        }
    }
}
