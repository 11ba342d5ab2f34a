//! `janus plan`: what a cluster would do, and what it would cost, before there is one.

mod described;
mod report;
mod size;

use std::io::Read;
use std::path::Path;

use janus_cluster::plan;
use janus_spec::ModelSpec;
use janus_wire::Security;
use janus_wire::v1::DescribeProblemRequest;
use janus_wire::v1::cluster_client::ClusterClient;
use tonic::transport::Channel;

use crate::args::Plan;
use crate::credential::signed;
use crate::failure::{Failure, Outcome};
use crate::{checkpoint, session, status};
use described::Described;

pub(crate) use report::{Report, report};

/// Largest description that is read.
const LARGEST: u64 = 1 << 20;

pub(crate) fn run(args: Plan) -> Outcome {
    let (place, cluster) = match (&args.cluster, &args.endpoint) {
        (Some(file), _) => (file.display().to_string(), described(file, &args)?),
        (None, endpoint) => {
            let endpoint = endpoint.as_deref().unwrap_or_default();
            (endpoint.to_owned(), live(endpoint, &args.tls.security()?)?)
        }
    };
    let found = plan::plan(&cluster.problem).map_err(|e| Failure::mistake(format!("{place}: {e}")))?;
    let estimate = plan::estimate(&cluster.problem, &found, &cluster.load);
    // That one node more changes nothing, or has no place, is no reason to say nothing about these.
    let next = plan::next_node(&cluster.problem, &found, &cluster.load).ok();
    let said =
        Report { model: &cluster.model, problem: &cluster.problem, plan: &found, estimate: &estimate, next: next.as_ref() };
    report(&said, args.json)
}

fn described(file: &Path, args: &Plan) -> Outcome<Described> {
    let refuse = |reason: String| Failure::mistake(format!("{}: {reason}", file.display()));
    let text = read(file).map_err(refuse)?;
    let model = match &args.model {
        Some(name) => Some((name.clone(), ModelSpec::load(&checkpoint::files(name)?)?)),
        None => None,
    };
    described::parse(&text, model).map_err(refuse)
}

/// The cluster behind a coordinator, as it is now.
fn live(endpoint: &str, security: &Security) -> Outcome<Described> {
    let ask =
        |mut client: ClusterClient<Channel>| async move { client.describe_problem(signed(DescribeProblemRequest {})).await };
    let answer = session::runtime()?.block_on(status::asked(endpoint, security, ask))?;
    let problem = serde_json::from_str(&answer.problem_json).map_err(|e| {
        Failure::Broken(format!("{endpoint}: its description cannot be read ({e}); use the same version as the cluster"))
    })?;
    Ok(Described { model: answer.model, problem, load: plan::Load::default() })
}

fn read(path: &Path) -> Result<String, String> {
    // Before opening: opening a pipe would wait for a writer.
    let meta = std::fs::metadata(path).map_err(|e| format!("cannot be read: {e}"))?;
    if !meta.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| format!("cannot be read: {e}"))?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("has more than {LARGEST} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is no UTF-8 text".to_owned())
}
