//! ◆ Which agents were spawned by which: a Cancel of the parent, or of the session on which its run was
//! begun, reaches the children.

use std::time::Duration;

use protocol::{AgentCall, Channel};

use super::lease::{Parent, REMEMBERED};
use super::{Change, Effect, Index, Record, RecordKind};
use crate::{Backend, Journal, Unavailable};

impl Parent {
    /// Where a Cancel may be sent that means the child.
    fn channels(&self) -> impl Iterator<Item = Channel> {
        Channel::agent(&self.agent_id).ok().into_iter().chain(self.session.clone())
    }
}

impl Journal {
    /// Declares `child` as spawned by `parent`: a Cancel of the parent reaches it as well.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn adopt(&self, parent: &Parent, child: &str) -> Result<(), Unavailable> {
        if let Backend::Relayed(relayed) = &self.backend {
            return relayed.adopt(AgentCall::Adopt, child, parent).await;
        }
        let run = parent.run_id.as_deref().unwrap_or_default();
        for channel in parent.channels() {
            let record = Record { kind: RecordKind::Child, channel, id: child.into() };
            let found = self.snapshot(&record).await?.state;
            let mut change = Change::new(&record, found, &run);
            change.lifetime = Some(REMEMBERED);
            change.effects = vec![Effect::Put(Index::Children, child.into(), run.into())];
            self.commit(&change).await?;
        }
        Ok(())
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

    /// No longer a child.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn disown(&self, parent: &Parent, child: &str) -> Result<(), Unavailable> {
        if let Backend::Relayed(relayed) = &self.backend {
            return relayed.adopt(AgentCall::Disown, child, parent).await;
        }
        for channel in parent.channels() {
            let record = Record { kind: RecordKind::Child, channel, id: child.into() };
            let found = self.snapshot(&record).await?.state;
            let mut change = Change::new(&record, found, &"");
            change.lifetime = Some(Duration::from_secs(1));
            change.effects = vec![Effect::Remove(Index::Children, child.into())];
            self.commit(&change).await?;
        }
        Ok(())
    }
}
