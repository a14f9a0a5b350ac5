//! What an agent may rely on, on every way in: each promise is tested in the process of its journal, over
//! Redis, through a relay on Redis, and through a relay without Redis.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong in a test ends it")]

#[path = "../cluster/mod.rs"]
mod cluster;

/// Makes a test of each function named, for each way in.
macro_rules! on_every_way {
    ($($test:ident),+ $(,)?) => {
        on_every_way! { @way in_process: $($test)+ }
        on_every_way! { @way by_redis: $($test)+ }
        on_every_way! { @way through_a_relay: $($test)+ }
        on_every_way! { @way through_a_relay_without_redis: $($test)+ }
    };
    (@way $way:ident: $($test:ident)+) => {
        mod $way {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test($crate::cluster::Way::$way().await).await;
                }
            )+
        }
    };
}

mod approvals;
mod blocked;
mod commands;
mod events;
mod leases;
mod runs;
mod services;
mod starting;
mod time;
