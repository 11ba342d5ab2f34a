//! `janus up`: a whole cluster on this machine, one process for each part. A part that dies is started again; all of them
//! end with this process, however it ends.

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use janus_wire::{Listener, Security};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::args::{Tether, Up};
use crate::failure::{Failure, Outcome};
use crate::serve::{Signals, check_listen};
use crate::worker::available_memory;
use crate::{checkpoint, gateway, output, status};

/// Pause before a part is started again: doubled each time, up to the second value...
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// ...and forgotten when it has lived for so long.
const STEADY: Duration = Duration::from_secs(10);
/// A part that was asked to end does it within this.
const GRACE: Duration = Duration::from_secs(5);
/// How often a cluster is asked whether it is ready.
const POLL: Duration = Duration::from_millis(50);

/// A part: its name, its program and arguments, and whether it is etcd.
struct Part {
    name: String,
    command: Vec<OsString>,
}

pub(crate) fn run(args: Up) -> Outcome {
    check_listen(&args.listen, args.insecure)?;
    if let Some(http) = &args.http {
        gateway::check(http, args.insecure)?;
    }
    if args.test_step_delay_ms > 0 && !args.test {
        return Err(Failure::mistake("--test-step-delay-ms slows every step down; it is for tests alone: add --test"));
    }
    let etcd = find_etcd()?;
    let spec = janus_spec::ModelSpec::load(&checkpoint::files(&args.here.model)?)?;
    if args.here.stages > spec.llm.layers {
        return Err(Failure::mistake(format!(
            "--stages {}: the model has {layers} layers, so at most {layers} stages",
            args.here.stages,
            layers = spec.llm.layers
        )));
    }
    let forgotten = tempfile::tempdir().map_err(|e| Failure::Broken(format!("no temporary directory: {e}")))?;
    let state = args.state.clone().unwrap_or_else(|| forgotten.path().to_owned());
    std::fs::create_dir_all(&state).map_err(|e| Failure::mistake(format!("--state {}: {e}", state.display())))?;
    // Children are started from this thread, and end with it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Broken(format!("no runtime: {e}")))?;
    runtime.block_on(supervise(args, etcd, state))
}

async fn supervise(args: Up, etcd: PathBuf, state: PathBuf) -> Outcome {
    let mut signals = Signals::new()?;
    let public = coordinator_addresses(&args).await?;
    let http = match args.http.as_deref() {
        // A taken port is known before anything is started; a free one is found here, because others will ask for it.
        Some(http) => Some(gateway::listen(http).await?.address()),
        None => None,
    };
    let (client, peer) = (free_port().await?, free_port().await?);
    let url = format!("http://127.0.0.1:{client}");
    let exe = std::env::current_exe().map_err(|e| Failure::Broken(format!("this program's own path: {e}")))?;

    let over = CancellationToken::new();
    let mut parts = tokio::task::JoinSet::new();
    parts.spawn(keep(etcd_part(&etcd, &state, &url, peer), over.clone()));
    // Workers first: the coordinator then finds all of them.
    for part in workers(&args, &exe, &url) {
        parts.spawn(keep(part, over.clone()));
    }
    for (i, address) in public.iter().enumerate() {
        parts.spawn(keep(coordinator(&args, &exe, &url, i, address), over.clone()));
    }

    let endpoints = public.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if let Some(http) = http {
        parts.spawn(keep(door(&args, &exe, &endpoints, &http), over.clone()));
    }
    let ready = async {
        loop {
            // Whichever of them leads.
            if let Ok(answer) = status::cluster(&endpoints).await
                && !answer.pipelines.is_empty()
                && answer.pipelines.iter().all(|p| p.state == "ready")
                && ["encoder", "decoder"].iter().all(|role| answer.members.iter().any(|m| m.roles.iter().any(|r| r == role)))
            {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        if let Some(http) = http {
            while janus_wire::connect(&http.to_string(), &Security::Plain).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        }
    };
    let failed = tokio::select! {
        () = ready => {
            output::print_line(&format!("ready {endpoints}"));
            if let Some(http) = http {
                output::print_line(&format!("http {http}"));
            }
            tokio::select! {
                failed = parts.join_next() => failed,
                () = signals.any() => None,
            }
        }
        failed = parts.join_next() => failed,
        () = signals.any() => None,
    };
    over.cancel();
    while parts.join_next().await.is_some() {}
    match failed {
        Some(Ok(Err(failure))) => Err(failure),
        _ => Ok(()),
    }
}

/// Runs a part, again and again, until `over`. It gives up only on what no restart can mend: a mistake in its arguments.
async fn keep(part: Part, over: CancellationToken) -> Outcome {
    let mut pause = PAUSE.0;
    loop {
        let begun = Instant::now();
        let mut child = start(&part)?;
        let status = tokio::select! {
            status = child.wait() => status.map_err(|e| Failure::Broken(format!("{}: {e}", part.name)))?,
            () = over.cancelled() => {
                stop(&mut child).await;
                return Ok(());
            }
        };
        if status.code() == Some(2) {
            return Err(Failure::mistake(format!("{} cannot run with what it was given; see above", part.name)));
        }
        if begun.elapsed() > STEADY {
            pause = PAUSE.0;
        }
        eprintln!("janus: {} ended ({status}); starting it again in {} ms", part.name, pause.as_millis());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = over.cancelled() => return Ok(()),
        }
        pause = (2 * pause).min(PAUSE.1);
    }
}

fn start(part: &Part) -> Outcome<Child> {
    let exe = std::env::current_exe().map_err(|e| Failure::Broken(format!("this program's own path: {e}")))?;
    let mut command = Command::new(exe);
    command.arg("tether").arg(std::process::id().to_string()).arg("--").args(&part.command);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command.spawn().map_err(|e| Failure::Broken(format!("{} cannot be started: {e}", part.name)))
}

/// Asks it to end, then makes it.
async fn stop(child: &mut Child) {
    let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32));
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn etcd_part(etcd: &Path, state: &Path, url: &str, peer: u16) -> Part {
    let peer = format!("http://127.0.0.1:{peer}");
    let flags = [
        ("--name", "janus".to_owned()),
        ("--data-dir", state.join("etcd").display().to_string()),
        ("--listen-client-urls", url.to_owned()),
        ("--advertise-client-urls", url.to_owned()),
        ("--listen-peer-urls", peer.clone()),
        ("--initial-advertise-peer-urls", peer.clone()),
        ("--initial-cluster", format!("janus={peer}")),
        ("--auto-compaction-mode", "periodic".to_owned()),
        ("--auto-compaction-retention", "10m".to_owned()),
        ("--log-level", "error".to_owned()),
        ("--logger", "zap".to_owned()),
    ];
    let flags = flags.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]);
    Part { name: "etcd".to_owned(), command: [etcd.as_os_str().to_owned()].into_iter().chain(flags).collect() }
}

fn workers(args: &Up, exe: &Path, url: &str) -> Vec<Part> {
    let stages = args.here.stages * args.pipelines + args.spares;
    let memory = available_memory() / stages as u64 * 8 / 10;
    let worker = |name: String, role: &str, slow: bool| {
        let mut command: Vec<OsString> = vec![exe.into(), "worker".into()];
        let mut flag = |flag: &str, value: String| command.extend([flag.into(), value.into()]);
        flag("--role", role.to_owned());
        flag("--name", name.clone());
        flag("--etcd", url.to_owned());
        flag("--ttl", args.ttl.to_string());
        flag("--model", args.here.model.clone());
        flag("--memory", memory.to_string());
        flag("--kv", args.here.kv.name().to_owned());
        if let Some(weights) = args.here.weights {
            flag("--weights", weights.name().to_owned());
        }
        if let Some(threads) = args.here.threads {
            flag("--threads", threads.to_string());
        }
        if slow && args.test_step_delay_ms > 0 {
            flag("--test-step-delay-ms", args.test_step_delay_ms.to_string());
        }
        if args.test {
            command.push("--test".into());
        }
        Part { name, command }
    };
    let mut parts: Vec<Part> = (0..stages).map(|i| worker(format!("stage-{i}"), "stage", true)).collect();
    for i in 0..args.painters {
        parts.push(worker(format!("encoder-{i}"), "encoder", false));
        parts.push(worker(format!("decoder-{i}"), "decoder", false));
    }
    parts
}

fn coordinator(args: &Up, exe: &Path, url: &str, i: usize, address: &SocketAddr) -> Part {
    let name = format!("coordinator-{i}");
    let mut command: Vec<OsString> = vec![exe.into(), "coordinator".into()];
    let flags = [
        ("--name", name.clone()),
        ("--listen", address.to_string()),
        ("--etcd", url.to_owned()),
        ("--ttl", args.ttl.to_string()),
        ("--model", args.here.model.clone()),
        ("--stages", args.here.stages.to_string()),
        ("--pipelines", args.pipelines.to_string()),
        ("--spares", args.spares.to_string()),
    ];
    command.extend(flags.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]));
    command.extend(["--kv".into(), args.here.kv.name().into()]);
    if let Some(weights) = args.here.weights {
        command.extend(["--weights".into(), weights.name().into()]);
    }
    if args.insecure {
        command.push("--insecure".into());
    }
    Part { name, command }
}

fn door(args: &Up, exe: &Path, endpoints: &str, http: &SocketAddr) -> Part {
    let mut command: Vec<OsString> = vec![exe.into(), "gateway".into()];
    let mut flag = |flag: &str, value: &str| command.extend([flag.into(), value.into()]);
    flag("--listen", &http.to_string());
    flag("--endpoint", endpoints);
    args.door.image_hosts.iter().for_each(|host| flag("--image-host", host));
    args.door.public_url.iter().for_each(|url| flag("--public-url", url));
    if args.insecure {
        command.push("--insecure".into());
    }
    Part { name: "gateway".to_owned(), command }
}

/// The first coordinator's address as asked for, and the ports after it for the others.
async fn coordinator_addresses(args: &Up) -> Outcome<Vec<SocketAddr>> {
    let wrong = |e: std::io::Error| Failure::mistake(format!("--listen {}: {e}", args.listen));
    let first = args.listen.to_socket_addrs().map_err(wrong)?.next();
    let first = first.ok_or_else(|| Failure::mistake(format!("--listen {}: no address", args.listen)))?;
    let mut taken = Vec::new();
    for i in 0..args.coordinators as u16 {
        let port = if first.port() == 0 { 0 } else { first.port().saturating_add(i) };
        let address = SocketAddr::new(first.ip(), port).to_string();
        // Taken ports are known before anything is started.
        taken.push(Listener::bind(&address).await.map_err(|e| Failure::mistake(format!("--listen {}: {e}", args.listen)))?);
    }
    Ok(taken.iter().map(Listener::address).collect())
}

async fn free_port() -> Outcome<u16> {
    let listener = Listener::bind("127.0.0.1:0").await;
    listener.map(|l| l.address().port()).map_err(|e| Failure::Broken(format!("no free port: {e}")))
}

fn find_etcd() -> Outcome<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file());
    found.ok_or_else(|| {
        Failure::mistake(
            "no etcd on the PATH: install it (Debian: etcd-server), or use `janus serve`, which needs none and runs in one process",
        )
    })
}

/// Becomes another program that ends when this one's parent does.
pub(crate) fn tether(args: Tether) -> Outcome {
    use std::os::unix::process::CommandExt;
    let told = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    told.map_err(|e| Failure::Broken(format!("the parent's end cannot be followed: {e}")))?;
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32);
    if parent != Some(args.parent) {
        // It ended before we could ask.
        return Ok(());
    }
    let Some((program, rest)) = args.command.split_first() else { return Ok(()) };
    let error = std::process::Command::new(program).args(rest).exec();
    Err(Failure::mistake(format!("{}: {error}", program.display())))
}
