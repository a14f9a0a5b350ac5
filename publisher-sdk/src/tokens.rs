//! Where the token comes from that an agent shows to a relay.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

/// How long a source may take: half of the time in which an agent must connect.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(5);

type Given = Result<String, Box<dyn Error + Send + Sync>>;

/// Where an agent's token comes from.
#[derive(Clone)]
pub(crate) enum TokenSource {
    /// It is always the same.
    Fixed(Arc<str>),
    /// Asked each time.
    Asked(Arc<dyn Fn() -> BoxFuture<'static, Given> + Send + Sync>),
}

impl TokenSource {
    /// A source that is asked each time.
    pub(crate) fn asked<F>(source: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Given> + Send + 'static,
    {
        Self::Asked(Arc::new(move || source().boxed()))
    }

    /// A token; or why there is none.
    pub(crate) async fn token(&self) -> Result<String, String> {
        match self {
            Self::Fixed(token) => Ok((**token).to_owned()),
            Self::Asked(source) => match timeout(SOURCE_TIMEOUT, source()).await {
                Ok(Ok(token)) => Ok(token),
                Ok(Err(error)) => Err(format!("the token source failed: {error}")),
                Err(_) => Err(format!("the token source gave nothing within {SOURCE_TIMEOUT:?}")),
            },
        }
    }
}

/// A token is never printed.
impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed(_) => "Fixed(***)",
            Self::Asked(_) => "Asked",
        })
    }
}
