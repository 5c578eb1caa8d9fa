//! `kata-agent`: PID 1 of the guest, or an ordinary process on a host (`--no-init`).

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kata_agent::cgroup::{self, oom};
use kata_agent::container::create::Tools;
use kata_agent::container::{connect, pause};
use kata_agent::error::{Context, Result};
use kata_agent::options::Options;
use kata_agent::process::launch::Crun;
use kata_agent::reaper::Reaper;
use kata_agent::rpc::Agent;
use kata_agent::sandbox::Sandbox;
use kata_agent::{heap, init, logging, net, power, relay, serve};
use tokio::signal::unix::{signal, SignalKind};
use tokio::time::timeout;

/// How long the answer to `DestroySandbox` may take to leave the guest.
const LAST_REPLY: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name.as_encoded_bytes() == pause::NAME.to_bytes()) {
        return match arguments.collect::<Vec<_>>().as_slice() {
            [verb, port] if verb == connect::VERB => connect::run(&port.to_string_lossy()),
            _ => pause::run(),
        };
    }
    let arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    let mut options = Options::default();
    if let Err(argument) = options.apply_arguments(arguments) {
        eprintln!("kata-agent: argument {argument:?}: unknown, or its value is missing or wrong");
        return ExitCode::from(2);
    }
    let problems = prepare(&mut options);
    logging::start(options.init, options.log);
    problems.iter().for_each(|problem| log::warn!("{problem}"));
    let init = options.init;
    let result = run(options);
    if let Err(error) = &result {
        log::error!("{error}");
    }
    if init {
        power::off();
    }
    if result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Everything that comes before the log; returns what failed.
fn prepare(options: &mut Options) -> Vec<String> {
    heap::keep_buffers();
    let mut problems = Vec::new();
    if options.init {
        problems.extend(init::mount_all());
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let bad = options.apply_kernel(&line);
        problems.extend(bad.into_iter().map(|word| format!("kernel parameter {word:?}: makes no sense, ignored")));
    }
    if options.cgroups {
        problems.extend(cgroup::enable_controllers());
    }
    problems.extend(init::prepare_process());
    problems
}

fn run(options: Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().at("start", "runtime")?;
    let result = runtime.block_on(serve(options));
    // Blocking threads may hang in a mount of a host that has gone.
    runtime.shutdown_background();
    result
}

async fn serve(options: Options) -> Result<()> {
    let options = Arc::new(options);
    let reaper = Reaper::default();
    let reaping = tokio::spawn(reaper.clone().run());
    let crun = Crun::new(reaper.clone(), options.cgroups, options.pipe_size);
    let tools = Tools { reaper, crun, oom: Arc::new(oom::Queue::default()), options: options.clone() };
    let sandbox = Sandbox::new(tools);
    let renewal = relay::Renewal::default();
    let (mut server, connections) = serve::start(Agent::new(sandbox.clone(), renewal.clone())).await?;
    let listening = tokio::spawn(serve::listen(options.server.clone(), connections.clone()));
    if options.init {
        report("loopback", net::loopback_up().await);
    }
    let relaying = options.init.then(|| tokio::spawn(relay::run(connections, renewal)));
    let result = until_the_end(&options, &sandbox, listening).await;
    report("shut down", server.shutdown().await.at("shut down", "ttrpc server"));
    if let Some(relaying) = relaying {
        // Lets the last reply out, if a host is there to take it.
        let _ = timeout(LAST_REPLY, relaying).await;
    }
    reaping.abort();
    result
}

/// Waits for the end of the pod, SIGTERM, or on a host a server that cannot serve.
async fn until_the_end(
    options: &Options,
    sandbox: &Sandbox,
    listening: tokio::task::JoinHandle<Result<()>>,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).at("watch", "SIGTERM")?;
    let listening = async {
        let result = listening.await.at("listen", &options.server).and_then(|result| result);
        if options.init {
            // Not every guest has vsock: then the port is the only way in.
            report("listen", result);
            std::future::pending().await
        } else {
            result
        }
    };
    tokio::select! {
        result = listening => result,
        () = sandbox.destroyed() => Ok(()),
        _ = terminate.recv() => {
            sandbox.destroy().await;
            Ok(())
        }
    }
}

fn report(what: &str, result: Result<()>) {
    if let Err(error) = result {
        log::warn!("{what}: {error}");
    }
}
