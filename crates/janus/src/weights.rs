//! Weights between the nodes of a cluster, as flags ask for it: whom to ask, and what to give.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use janus_cluster::{Candidate, Keys, Member, Store, StoreConfig};
use janus_model::Checkpoint;
use janus_wire::Security;
use janus_worker::weights::{Peers, Wanted, obtain};

use crate::args::Worker;
use crate::failure::{Failure, Outcome};
use crate::{checkpoint, pull};

/// The worker's checkpoint: the one on its disk, or one that comes from the cluster as it is needed.
pub(crate) async fn open(args: &Worker, config: &StoreConfig, security: &Security) -> Outcome<Checkpoint> {
    let Some(cache) = &args.cache else {
        return Ok(Checkpoint::open(checkpoint::files(&args.node.model)?)?);
    };
    // A whole model is a part of itself.
    let folder = match args.node.model.as_str() {
        "shapes" => None,
        dir if Path::new(dir).is_dir() => Some(PathBuf::from(dir)),
        name => pull::find(name).ok().flatten(),
    };
    let local = match &folder {
        Some(dir) => Some(Checkpoint::open_part(janus_spec::Files::open_dir(dir)?)?),
        None => None,
    };
    let wanted = Wanted {
        cluster: args.node.store.cluster.clone(),
        model: if local.is_some() { String::new() } else { args.node.model.clone() },
        local,
        peers: peers(config.clone(), &args.node.store.cluster)?,
        security: security.clone(),
    };
    obtain(cache, wanted).await.map_err(Failure::mistake)
}

/// The cluster's leader, then its members that have the model.
fn peers(config: StoreConfig, cluster: &str) -> Outcome<Peers> {
    let keys = Keys::new(cluster).map_err(Failure::mistake)?;
    let connection: Arc<tokio::sync::Mutex<Option<Arc<dyn Store>>>> = Arc::default();
    Ok(Arc::new(move |digest| {
        let (config, keys, connection) = (config.clone(), keys.clone(), connection.clone());
        async move {
            let mut connection = connection.lock().await;
            if connection.is_none() {
                *connection = config.connect().await.ok();
            }
            let Some(store) = connection.as_ref() else { return Vec::new() };
            let leader = store.get(&keys.leader()).await.ok().flatten();
            let leader = leader.and_then(|entry| serde_json::from_slice::<Candidate>(&entry.value).ok());
            let members = store.list(&keys.members()).await.map(|listing| listing.entries).unwrap_or_default();
            let members = members.iter().filter_map(|entry| Member::decode(&entry.key, &entry.value).ok());
            let members = members.filter(|member| digest.is_empty() || member.model == digest).map(|member| member.address);
            leader.map(|candidate| candidate.address).into_iter().chain(members).collect()
        }
        .boxed()
    }))
}
