//! ◆ Which agents were spawned by which: a Cancel of the parent, or of the session on which its run was
//! begun, reaches the children.

use protocol::{Channel, Parent};
use serde::{Deserialize, Serialize};

use super::lease::REMEMBERED;
use super::{Change, Decision, Effect, Holder, Index, Record, RecordKind};
use crate::{Journal, Unavailable};

/// Where a Cancel may be sent that reaches the child.
fn channels(parent: &Parent) -> impl Iterator<Item = Channel> {
    Channel::agent(&parent.agent_id).ok().into_iter().chain(parent.session.clone())
}

/// A child on its parent's channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ChildState {
    incarnation: u64,
    /// Whether it is still one: the end is kept, so that an older incarnation does not undo it.
    is_child: bool,
}

/// The child comes or goes, unless a newer incarnation of it has spoken before.
fn declared(found: Option<ChildState>, child: &Holder, run: Option<&str>) -> Decision<()> {
    if found.is_some_and(|state| state.incarnation > child.incarnation) {
        return Decision::Keep(());
    }
    let state = ChildState { incarnation: child.incarnation, is_child: run.is_some() };
    let mut change = Change::new(&state);
    change.lifetime = Some(REMEMBERED);
    change.effects = vec![match run {
        Some(run) => Effect::Put(Index::Children, child.agent.clone(), run.into()),
        None => Effect::Remove(Index::Children, child.agent.clone()),
    }];
    Decision::Set(change, ())
}

impl Journal {
    /// Declares `child` as spawned by `parent`: a Cancel of the parent reaches it as well. Nothing changes
    /// if a newer incarnation of the child has been declared.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn adopt(&self, parent: &Parent, child: &Holder) -> Result<(), Unavailable> {
        self.declare(parent, child, Some(parent.run_id.as_deref().unwrap_or_default())).await
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
        let children = self.list(channel, &Index::Children).await?;
        let meant = children.into_iter().filter(|(_, run)| run_id.is_none_or(|id| id == &**run));
        Ok(meant.map(|(child, _)| child).collect())
    }

    /// No longer a child, unless a newer incarnation of it is one.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn disown(&self, parent: &Parent, child: &Holder) -> Result<(), Unavailable> {
        self.declare(parent, child, None).await
    }

    async fn declare(
        &self,
        parent: &Parent,
        child: &Holder,
        run: Option<&str>,
    ) -> Result<(), Unavailable> {
        for channel in channels(parent) {
            let record = Record { kind: RecordKind::Child, channel, id: child.agent.clone() };
            self.transact(&record, |found, _| declared(found, child, run)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(incarnation: u64) -> Holder {
        Holder { agent: "c".into(), incarnation }
    }

    #[test]
    fn an_older_incarnation_of_a_child_changes_nothing() {
        for is_child in [true, false] {
            let found = Some(ChildState { incarnation: 2, is_child });
            for run in [Some("r1"), None] {
                assert!(matches!(declared(found.clone(), &child(1), run), Decision::Keep(())));
                assert!(matches!(declared(found.clone(), &child(2), run), Decision::Set(..)));
            }
        }
        assert!(matches!(declared(None, &child(1), Some("")), Decision::Set(..)));
    }
}
