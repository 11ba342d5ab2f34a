//! What operators do with tenants.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use janus_cluster::{Committed, Entry, Keys, Store, Txn};
use janus_wire::v1::tenants_server::{Tenants as Service, TenantsServer};
use janus_wire::v1::{self, Tenant};
use tonic::{Response, Status};

use super::audit::told;
use super::*;

/// Most tenants, most keys of one, and most folders of one.
const MOST: (usize, usize, usize) = (10_000, 8, 16);
/// Somebody else may change a tenant at the same time, so often.
const TRIES: usize = 5;
/// The longest time an old key may live on.
const MAX_GRACE: u64 = 30 * 24 * 60 * 60;

impl Tenants {
    /// As a tonic service.
    pub fn server(self) -> TenantsServer<Self> {
        TenantsServer::new(self)
    }

    fn kept(&self) -> Result<(&Arc<dyn Store>, &Keys), Status> {
        let kept = self.0.kept.as_ref().map(|(store, keys)| (store, keys));
        kept.ok_or_else(|| Status::failed_precondition("this server keeps no tenants: it has no store (--state DIR)"))
    }

    async fn stored(&self, name: &str) -> Result<Option<(Entry, Stored)>, Status> {
        let (store, keys) = self.kept()?;
        let Some(entry) = store.get(&by_name(keys, name)).await.map_err(away)? else { return Ok(None) };
        let tenant = serde_json::from_slice(&entry.value);
        tenant.map(|tenant| Some((entry, tenant))).map_err(|e| Status::data_loss(format!("the record of {name}: {e}")))
    }

    /// Changes a tenant that exists; nobody else's change at the same time is lost.
    async fn change(&self, by: &str, verb: &str, name: &str, change: impl Fn(&mut Stored)) -> Result<Tenant, Status> {
        let (store, keys) = self.kept()?;
        for _ in 0..TRIES {
            let found = self.stored(name).await?;
            let (entry, mut tenant) = found.ok_or_else(|| Status::not_found(format!("there is no tenant `{name}`")))?;
            change(&mut tenant);
            let txn = Txn::new().if_version(&entry.key, entry.version).put(&entry.key, encode(&tenant)?);
            if let Committed::Done { revision } = store.commit(told(txn, keys, by, verb, name)).await.map_err(away)? {
                tracing::warn!(target: "audit", by, tenant = name, "tenant {verb}");
                self.known(revision).await;
                return Ok(tenant.shown(name));
            }
        }
        Err(Status::aborted(format!("others keep changing tenant `{name}`; try again")))
    }
}

#[tonic::async_trait]
impl Service for Tenants {
    async fn create(&self, request: Request<v1::CreateTenantRequest>) -> Result<Response<v1::CreateTenantResponse>, Status> {
        let by = operator(&request)?;
        let tenant = request.into_inner().tenant.unwrap_or_default();
        check(&tenant)?;
        let (store, keys) = self.kept()?;
        if self.0.table.borrow().by_name.len() >= MOST.0 {
            return Err(Status::resource_exhausted(format!("there are {} tenants already", MOST.0)));
        }
        let (api_key, digest) = new_key()?;
        let mut stored = Stored {
            operator: false,
            weight: 1,
            quotas: Default::default(),
            output_roots: Vec::new(),
            created_unix_ms: now_unix_ms(),
            keys: [(digest, None)].into(),
        };
        stored.set(&tenant);
        let key = by_name(keys, &tenant.name);
        let txn = Txn::new().if_absent(&key).put(&key, encode(&stored)?);
        match store.commit(told(txn, keys, &by, "created", &tenant.name)).await.map_err(away)? {
            Committed::Done { revision } => {
                tracing::warn!(target: "audit", by, tenant = tenant.name, "tenant created");
                self.known(revision).await;
                Ok(Response::new(v1::CreateTenantResponse { tenant: Some(stored.shown(&tenant.name)), api_key }))
            }
            Committed::Conflict => Err(Status::already_exists(format!("there is a tenant `{}` already", tenant.name))),
        }
    }

    async fn update(&self, request: Request<v1::UpdateTenantRequest>) -> Result<Response<Tenant>, Status> {
        let by = operator(&request)?;
        let tenant = request.into_inner().tenant.unwrap_or_default();
        check(&tenant)?;
        let changed = self.change(&by, "changed", &tenant.name, |stored| stored.set(&tenant)).await?;
        Ok(Response::new(changed))
    }

    async fn list(&self, request: Request<v1::ListTenantsRequest>) -> Result<Response<v1::ListTenantsResponse>, Status> {
        operator(&request)?;
        let table = self.0.table.borrow();
        let tenants = table.by_name.iter().map(|(name, tenant)| tenant.shown(name)).collect();
        Ok(Response::new(v1::ListTenantsResponse { tenants }))
    }

    async fn rotate(&self, request: Request<v1::RotateTenantRequest>) -> Result<Response<v1::RotateTenantResponse>, Status> {
        let by = operator(&request)?;
        let v1::RotateTenantRequest { name, grace_seconds } = request.into_inner();
        if grace_seconds > MAX_GRACE {
            return Err(status::invalid("grace_seconds", format!("{grace_seconds} is more than {MAX_GRACE}, 30 days")));
        }
        let (api_key, digest) = new_key()?;
        let now = now_unix_ms();
        self.change(&by, "rotated", &name, |stored| {
            let end = now + 1000 * grace_seconds;
            stored.keys.values_mut().for_each(|until| *until = Some(until.map_or(end, |until| until.min(end))));
            stored.keys.retain(|_, until| until.is_none_or(|until| until > now));
            while stored.keys.len() >= MOST.1 {
                stored.keys.pop_first();
            }
            stored.keys.insert(digest.clone(), None);
        })
        .await?;
        Ok(Response::new(v1::RotateTenantResponse { api_key }))
    }

    async fn revoke(&self, request: Request<v1::RevokeTenantRequest>) -> Result<Response<Tenant>, Status> {
        let by = operator(&request)?;
        let name = request.into_inner().name;
        let tenant = self.change(&by, "revoked", &name, |stored| stored.keys.clear()).await?;
        Ok(Response::new(tenant))
    }

    async fn usage(&self, request: Request<v1::TenantUsageRequest>) -> Result<Response<v1::TenantUsageResponse>, Status> {
        operator(&request)?;
        let name = request.into_inner().name;
        let shown = |of: &str| name.is_empty() || *of == name;
        // Where somebody else leads, what he wrote down last is known.
        if !self.measures() {
            self.read_usage().await.map_err(away)?;
        }
        let as_shown = |(name, usage): (&String, &Usage)| v1::TenantUsage {
            name: name.clone(),
            rows: usage.rows,
            pictures: usage.pictures,
            answers: usage.answers,
            bytes: usage.bytes,
            ..v1::TenantUsage::default()
        };
        let tenants = self.meter().usages().filter(|(of, _)| shown(of)).map(as_shown).collect();
        Ok(Response::new(v1::TenantUsageResponse { tenants }))
    }

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Result<Response<v1::AuditResponse>, Status> {
        operator(&request)?;
        self.kept()?;
        let last = match request.into_inner().last {
            0 => 100,
            last => last.min(10_000) as usize,
        };
        let shown = |(at_unix_ms, entry): (u64, audit::Entry)| {
            let audit::Entry { by, verb, subject } = entry;
            v1::AuditEntry { at_unix_ms, by, verb, subject }
        };
        let entries = self.audited(last).await.map_err(away)?.into_iter().map(shown).collect();
        Ok(Response::new(v1::AuditResponse { entries }))
    }
}

/// The operator who calls, for the audit log.
fn operator<T>(request: &Request<T>) -> Result<String, Status> {
    let caller = Caller::of(request);
    caller.operator()?;
    Ok(caller.tenant.to_string())
}

fn check(tenant: &Tenant) -> Result<(), Status> {
    janus_cluster::keys::check_name("tenant", &tenant.name).map_err(|e| status::invalid("tenant.name", e.to_string()))?;
    if [LOCAL, OPERATOR].contains(&tenant.name.as_str()) {
        return Err(status::invalid("tenant.name", format!("`{}` means something else", tenant.name)));
    }
    if tenant.output_roots.len() > MOST.2 || tenant.output_roots.iter().any(|root| root.len() > 1024) {
        return Err(status::invalid("tenant.output_roots", format!("at most {} of at most 1024 bytes", MOST.2)));
    }
    Ok(())
}

fn new_key() -> Result<(String, String), Status> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|e| Status::internal(format!("no random bytes: {e}")))?;
    let key = format!("janus_{}", BASE64_URL_SAFE_NO_PAD.encode(secret));
    let digest = digest(&key);
    Ok((key, digest))
}

fn encode(tenant: &Stored) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(tenant).map_err(|e| Status::internal(e.to_string()))
}

fn away(error: janus_cluster::Error) -> Status {
    status::unavailable(format!("the store: {error}"), RETRY)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use janus_cluster::{MemoryStore, StoreConfig};

    use super::*;

    const OPERATORS: &str = "the operator's key";

    /// A call by the operator, as the interceptor leaves it.
    fn asked<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(Caller { tenant: OPERATOR.into(), operator: true });
        request
    }

    /// The only thread of this runtime does not come to the watch before the store has answered.
    #[tokio::test]
    async fn a_change_that_was_answered_holds_for_the_next_call() {
        let store = StoreConfig::Memory(MemoryStore::new()).connect().await.unwrap();
        let over = CancellationToken::new();
        let tenants = Tenants::start(store, Keys::new("c").unwrap(), Some(OPERATORS), over.clone());
        let name = || "ann".to_owned();
        let knocks = |key: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", format!("Bearer {key}").parse().unwrap());
            tenants.authenticate(&metadata).map(|caller| caller.tenant.to_string())
        };

        let tenant = Some(Tenant { name: name(), ..Tenant::default() });
        let first = tenants.create(asked(v1::CreateTenantRequest { tenant })).await.unwrap().into_inner().api_key;
        assert_eq!(knocks(&first).unwrap(), "ann");
        let rotate = v1::RotateTenantRequest { name: name(), grace_seconds: 0 };
        let second = tenants.rotate(asked(rotate)).await.unwrap().into_inner().api_key;
        assert_eq!(knocks(&second).unwrap(), "ann");
        knocks(&first).unwrap_err();
        tenants.revoke(asked(v1::RevokeTenantRequest { name: name() })).await.unwrap();
        knocks(&second).unwrap_err();

        // Nobody follows the store any more: the change is made, and its answer comes all the same.
        over.cancel();
        let rotate = v1::RotateTenantRequest { name: name(), grace_seconds: 0 };
        tenants.rotate(asked(rotate)).await.unwrap();
    }
}
