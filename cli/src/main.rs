//! `agent-relay`, the binary: words and variables in, an exit code out.
//!
//! The one place that knows both sides, the relay and the agents. [`flags`] is the table of what can be
//! given, [`arguments`] reads what was given, [`settings`] decides what it means; then one of the
//! [`subcommands`] runs.

mod arguments;
mod flags;
mod logs;
mod memory;
mod open_files;
mod problem;
mod retain;
mod settings;
mod signals;
mod subcommands;
mod value;
mod variables;

use std::ffi::OsString;
use std::process::ExitCode;

use problem::Report;
use settings::{Settings, Work};

/// The configuration is wrong; nothing was started.
const MISCONFIGURED: u8 = 2;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run());
    // What is left, such as the question to a slow name server, keeps nobody waiting.
    runtime.shutdown_background();
    code
}

async fn run() -> ExitCode {
    let variables: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let (given, problems) = match arguments::parse(std::env::args_os(), &variables) {
        Ok(parsed) => parsed,
        Err(answer) => {
            // Nobody reads it: nothing can be done about that here.
            drop(answer.print());
            return ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(MISCONFIGURED));
        }
    };
    let directives = variables.iter().find(|(name, _)| name == flags::LOG_VARIABLE);
    let directives = directives.map(|(_, value)| value.to_string_lossy().into_owned());
    let strangers = variables::warnings(&variables);
    let settings = match settings::resolve(given, directives.as_deref(), problems) {
        Ok(settings) => settings,
        Err(problems) => {
            eprint!("{}", Report(&problems));
            // What is missing may stand under a misspelt name.
            strangers.iter().for_each(|warning| eprintln!("\n  Besides, {warning}."));
            return ExitCode::from(MISCONFIGURED);
        }
    };
    let Settings { log_format, log_filter, mut warnings, work } = settings;
    warnings.extend(strangers);
    logs::start(log_format, log_filter);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let ended = match work {
        Work::Serve(config, retention) => {
            Box::pin(subcommands::serve::run(config, retention)).await
        }
        Work::Demo(config) => Box::pin(subcommands::demo::run(config, log_format)).await,
        Work::DemoAgent { redis, lease, session, agent_id } => {
            Box::pin(subcommands::demo_agent::run(&redis, lease, &session, &agent_id)).await
        }
        Work::Check(given, journal, retention) => {
            return match subcommands::check::run(&given, &journal, &retention).await {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            };
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
