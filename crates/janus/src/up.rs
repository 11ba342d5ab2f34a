//! `janus up`: a whole cluster on this machine, one process for each part. A part that dies is started again; all of them
//! end with this process, however it ends.

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use janus_wire::tls::{Role, Roles};
use janus_wire::{Listener, Security};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::args::{Tether, Up};
use crate::certs::Papers;
use crate::failure::{Failure, Outcome};
use crate::jobs::kept::folder_url;
use crate::serve::{Signals, check_credentials, check_listen};
use crate::worker::available_memory;
use crate::{checkpoint, gateway, output, status};

/// Name of the cluster: that of `--cluster` unless it is said.
const CLUSTER: &str = "janus";
/// Pause before a part is started again: doubled each time, up to the second value...
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// ...and forgotten when it has lived for so long.
const STEADY: Duration = Duration::from_secs(10);
/// A part that was asked to end does it within this.
const GRACE: Duration = Duration::from_secs(5);
/// Parts of an earlier run that was killed are gone within this.
const LEAVING: Duration = Duration::from_secs(3);
/// How often a cluster is asked whether it is ready.
const POLL: Duration = Duration::from_millis(50);

/// A part: its name, its program and arguments, and whether it is etcd.
struct Part {
    name: String,
    command: Vec<OsString>,
}

pub(crate) fn run(args: Up) -> Outcome {
    // With --tls the certificates are made below, so what matters is that there will be some.
    if !args.tls {
        check_listen(&args.listen, args.insecure, &Security::Plain)?;
    }
    let operator = args.credentials.load()?;
    check_credentials(&args.listen, args.insecure, operator.as_deref())?;
    if let Some(http) = &args.http {
        gateway::check(http, args.insecure || args.tls, &Security::Plain)?;
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
    let papers = match args.tls {
        true => Some(papers(&state, &public)?),
        false => None,
    };
    let papers = papers.as_ref();
    let url = format!("{}://127.0.0.1:{client}", if args.tls { "https" } else { "http" });
    let exe = std::env::current_exe().map_err(|e| Failure::Broken(format!("this program's own path: {e}")))?;

    let over = CancellationToken::new();
    let mut parts = tokio::task::JoinSet::new();
    parts.spawn(keep(etcd_part(&etcd, &state, &url, peer, papers)?, over.clone()));
    // Workers first: the coordinator then finds all of them.
    let mut metrics = metrics_ports(&args, public.len())?;
    for mut part in workers(&args, &exe, &url, papers)? {
        part.command.extend(args.sight.passed_on(metrics.workers.next()));
        parts.spawn(keep(part, over.clone()));
    }
    let jobs = match &args.keep.jobs {
        Some(url) => url.to_string(),
        None => folder_url(&state.join("jobs"))?.to_string(),
    };
    for (i, address) in public.iter().enumerate() {
        let mut part = coordinator(&args, &exe, &url, &jobs, i, address, papers)?;
        part.command.extend(args.sight.passed_on(metrics.coordinators.next()));
        parts.spawn(keep(part, over.clone()));
    }

    let security = match papers {
        Some(papers) => Security::files(papers.issue("client", Role::Client.into())?).map_err(Failure::mistake)?,
        None => Security::Plain,
    };
    let endpoints = public.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if let Some(http) = http {
        let mut part = door(&args, &exe, &endpoints, &http, papers)?;
        part.command.extend(args.sight.passed_on(metrics.workers.next()));
        parts.spawn(keep(part, over.clone()));
    }
    let ready = async {
        loop {
            // Whichever of them leads.
            if let Ok(answer) = status::cluster(&endpoints, &security).await
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
            if let Some(papers) = papers {
                eprintln!("janus: clients connect with --tls-ca {}", papers.ca().display());
            }
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
    let (mut pause, mut lived) = (PAUSE.0, false);
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
        lived |= begun.elapsed() > STEADY;
        // What worked once is no mistake; a port, say, is free again soon.
        if status.code() == Some(2) && !lived {
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

/// The authority of this cluster, and where its parts are found.
fn papers(state: &Path, public: &[SocketAddr]) -> Outcome<Papers> {
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    hosts.extend(public.iter().map(|address| address.ip().to_string()));
    hosts.sort();
    hosts.dedup();
    Papers::new(state.join("tls"), CLUSTER, hosts)
}

/// What a part is told of its certificate and, if it uses the store, of the one that it shows to etcd: the same.
fn tls_flags(papers: Option<&Papers>, name: &str, roles: Roles, store: bool) -> Outcome<Vec<OsString>> {
    let Some(papers) = papers else { return Ok(Vec::new()) };
    let files = papers.issue(name, roles)?;
    let mut flags: Vec<OsString> = Vec::new();
    let kinds = [["--tls-ca", "--etcd-ca"], ["--tls-cert", "--etcd-cert"], ["--tls-key", "--etcd-key"]];
    let (cert, key) = files.own.unwrap_or_default();
    for (names, file) in kinds.iter().zip([files.authority, cert, key]) {
        let names = &names[..if store { 2 } else { 1 }];
        flags.extend(names.iter().flat_map(|flag| [OsString::from(flag), file.clone().into()]));
    }
    Ok(flags)
}

fn etcd_part(etcd: &Path, state: &Path, url: &str, peer: u16, papers: Option<&Papers>) -> Outcome<Part> {
    let peer = format!("{}://127.0.0.1:{peer}", if papers.is_some() { "https" } else { "http" });
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
    let mut command: Vec<OsString> = [etcd.as_os_str().to_owned()].into_iter().chain(flags).collect();
    if let Some(papers) = papers {
        let files = papers.issue("etcd", Roles::default())?;
        let (cert, key) = files.own.unwrap_or_default();
        for prefix in ["--", "--peer-"] {
            for (flag, file) in [("trusted-ca-file", &files.authority), ("cert-file", &cert), ("key-file", &key)] {
                command.extend([format!("{prefix}{flag}").into(), file.into()]);
            }
            command.push(format!("{prefix}client-cert-auth").into());
        }
    }
    Ok(Part { name: "etcd".to_owned(), command })
}

fn workers(args: &Up, exe: &Path, url: &str, papers: Option<&Papers>) -> Outcome<Vec<Part>> {
    let stages = args.here.stages * args.pipelines + args.spares;
    let memory = available_memory() / stages as u64 * 8 / 10;
    let worker = |name: String, role: Role, slow: bool| -> Outcome<Part> {
        let mut command: Vec<OsString> = vec![exe.into(), "worker".into()];
        let mut flag = |flag: &str, value: String| command.extend([flag.into(), value.into()]);
        flag("--role", role.name().to_owned());
        flag("--name", name.clone());
        flag("--etcd", url.to_owned());
        flag("--ttl", args.ttl.to_string());
        flag("--model", args.here.model.clone());
        flag("--memory", memory.to_string());
        flag("--kv", args.here.kv.name().to_owned());
        flag("--device", args.here.device.to_string());
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
        command.extend(tls_flags(papers, &name, role.into(), true)?);
        Ok(Part { name, command })
    };
    let mut parts = Vec::new();
    for i in 0..stages {
        parts.push(worker(format!("stage-{i}"), Role::Stage, true)?);
    }
    for i in 0..args.painters {
        parts.push(worker(format!("encoder-{i}"), Role::Encoder, false)?);
        parts.push(worker(format!("decoder-{i}"), Role::Decoder, false)?);
    }
    Ok(parts)
}

fn coordinator(
    args: &Up,
    exe: &Path,
    url: &str,
    jobs: &str,
    i: usize,
    address: &SocketAddr,
    papers: Option<&Papers>,
) -> Outcome<Part> {
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
        ("--other-numerics", args.other_numerics.name().to_owned()),
        ("--jobs", jobs.to_owned()),
        ("--jobs-window", args.keep.jobs_window.to_string()),
        ("--jobs-keep", args.keep.jobs_keep.to_string()),
    ];
    command.extend(flags.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]));
    command.extend(["--kv".into(), args.here.kv.name().into()]);
    for output in &args.keep.jobs_output {
        command.extend(["--jobs-output".into(), output.as_str().into()]);
    }
    if let Some(weights) = args.here.weights {
        command.extend(["--weights".into(), weights.name().into()]);
    }
    if args.insecure {
        command.push("--insecure".into());
    }
    // The variable is inherited.
    if let Some(file) = &args.credentials.operator_key_file {
        command.extend(["--operator-key-file".into(), file.into()]);
    }
    command.extend(tls_flags(papers, &name, Role::Coordinator.into(), true)?);
    Ok(Part { name, command })
}

fn door(args: &Up, exe: &Path, endpoints: &str, http: &SocketAddr, papers: Option<&Papers>) -> Outcome<Part> {
    let mut command: Vec<OsString> = vec![exe.into(), "gateway".into()];
    let mut flag = |flag: &str, value: &str| command.extend([flag.into(), value.into()]);
    flag("--listen", &http.to_string());
    flag("--endpoint", endpoints);
    args.door.image_hosts.iter().for_each(|host| flag("--image-host", host));
    args.door.public_url.iter().for_each(|url| flag("--public-url", url));
    args.door.allow_hosts.iter().for_each(|host| flag("--allow-host", host));
    if args.insecure {
        command.push("--insecure".into());
    }
    command.extend(tls_flags(papers, "gateway", Role::Gateway.into(), false)?);
    Ok(Part { name: "gateway".to_owned(), command })
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
        taken.push(bind(&address).await.map_err(|e| Failure::mistake(format!("--listen {}: {e}", args.listen)))?);
    }
    Ok(taken.iter().map(Listener::address).collect())
}

/// A port; one that is taken may be that of an earlier run's part which is about to end.
async fn bind(address: &str) -> Result<Listener, janus_wire::Error> {
    let until = Instant::now() + LEAVING;
    loop {
        match Listener::bind(address).await {
            Err(janus_wire::Error::Listen { source, .. })
                if source.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < until =>
            {
                tokio::time::sleep(POLL).await;
            }
            bound => return bound,
        }
    }
}

/// Where the parts' metrics are, one after the other.
struct Metrics {
    coordinators: Box<dyn Iterator<Item = String>>,
    workers: Box<dyn Iterator<Item = String>>,
}

/// From the port that was asked for on: coordinators, then workers, then the gateway.
fn metrics_ports(args: &Up, coordinators: usize) -> Outcome<Metrics> {
    let Some(asked) = &args.sight.metrics else {
        return Ok(Metrics { coordinators: Box::new(std::iter::empty()), workers: Box::new(std::iter::empty()) });
    };
    let wrong = |reason: String| Failure::mistake(format!("--metrics {asked}: {reason}"));
    let first = asked.to_socket_addrs().map_err(|e| wrong(e.to_string()))?.next();
    let first = first.ok_or_else(|| wrong("no address".to_owned()))?;
    let parts = coordinators + args.here.stages * args.pipelines + args.spares + 2 * args.painters + 1;
    let last = usize::from(first.port()) + parts;
    if first.port() == 0 || last > usize::from(u16::MAX) {
        return Err(wrong(format!("{parts} parts take as many ports from there on; name the first one")));
    }
    let all = move |from: usize| {
        (from..).map(move |i| SocketAddr::new(first.ip(), first.port().saturating_add(i as u16)).to_string())
    };
    Ok(Metrics { coordinators: Box::new(all(0)), workers: Box::new(all(coordinators)) })
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
