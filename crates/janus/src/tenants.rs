//! `janus tenants`: what operators do with tenants.

use std::time::Duration;

use janus_wire::client::Coordinators;
use janus_wire::v1::tenants_client::TenantsClient;
use janus_wire::v1::{self, Tenant};
use serde::Serialize;
use tonic::transport::Channel;

use crate::args::{TenantRole, Tenants as Args, TenantsDeed, Terms};
use crate::credential::signed;
use crate::failure::{Failure, Outcome};
use crate::{output, session};

/// How long a cluster may be without a leader.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Serialize)]
struct Made<'a> {
    name: &'a str,
    api_key: &'a str,
}

#[derive(Serialize)]
struct All<T> {
    tenants: Vec<T>,
}

#[derive(Serialize)]
struct Shown {
    name: String,
    role: &'static str,
    weight: u32,
    in_flight: u32,
    rows_per_second: u32,
    queued: u32,
    pictures_per_day: u64,
    output_roots: Vec<String>,
    created_unix_ms: u64,
    revoked: bool,
}

#[derive(Serialize)]
struct Used {
    name: String,
    rows: u64,
    pictures: u64,
    answers: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Told {
    at_unix_ms: u64,
    by: String,
    verb: String,
    subject: String,
}

#[derive(Serialize)]
struct Log {
    entries: Vec<Told>,
}

pub(crate) fn run(args: Args) -> Outcome {
    let cluster = Coordinators::new(&args.endpoint, args.tls.security()?)
        .map_err(|error| Failure::mistake(format!("--endpoint: {error}")))?;
    session::runtime()?.block_on(async {
        match args.deed {
            TenantsDeed::Create(terms) => {
                let request = v1::CreateTenantRequest { tenant: Some(tenant(&terms)) };
                // Made twice it would be refused, so nothing is lost by asking again after a loss.
                let made = ask(&cluster, request, |mut c, r| async move { c.create(r).await }).await?;
                print_key(&terms.name, &made.api_key, args.json)
            }
            TenantsDeed::Update(terms) => {
                let request = v1::UpdateTenantRequest { tenant: Some(tenant(&terms)) };
                let changed = ask(&cluster, request, |mut c, r| async move { c.update(r).await }).await?;
                print_tenants(vec![changed], args.json)
            }
            TenantsDeed::List => {
                let request = v1::ListTenantsRequest {};
                let all = ask(&cluster, request, |mut c, r| async move { c.list(r).await }).await?;
                print_tenants(all.tenants, args.json)
            }
            TenantsDeed::Rotate { name, grace } => {
                let request = v1::RotateTenantRequest { name: name.clone(), grace_seconds: grace };
                let made = ask(&cluster, request, |mut c, r| async move { c.rotate(r).await }).await?;
                print_key(&name, &made.api_key, args.json)
            }
            TenantsDeed::Revoke { name } => {
                let request = v1::RevokeTenantRequest { name };
                let revoked = ask(&cluster, request, |mut c, r| async move { c.revoke(r).await }).await?;
                print_tenants(vec![revoked], args.json)
            }
            TenantsDeed::Usage { name, csv } => {
                if csv && args.json {
                    return Err(Failure::mistake("--csv and --json are two ways to say it: give one"));
                }
                let request = v1::TenantUsageRequest { name: name.unwrap_or_default() };
                let used = ask(&cluster, request, |mut c, r| async move { c.usage(r).await }).await?;
                print_usage(used.tenants, args.json, csv)
            }
            TenantsDeed::Audit { last } => {
                let request = v1::AuditRequest { last };
                let told = ask(&cluster, request, |mut c, r| async move { c.audit(r).await }).await?;
                print_audit(told.entries, args.json)
            }
        }
    })
}

async fn ask<Q, A, F>(
    cluster: &Coordinators,
    request: Q,
    call: impl Fn(TenantsClient<Channel>, tonic::Request<Q>) -> F,
) -> Outcome<A>
where
    Q: Clone,
    F: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
{
    let call = |channel| call(TenantsClient::new(channel), signed(request.clone()));
    cluster.call(PATIENCE, call).await.map_err(session::failure)
}

fn tenant(terms: &Terms) -> Tenant {
    let role = match terms.role {
        TenantRole::User => v1::TenantRole::User,
        TenantRole::Operator => v1::TenantRole::Operator,
    };
    Tenant {
        name: terms.name.clone(),
        role: role.into(),
        weight: terms.weight,
        quotas: Some(v1::Quotas {
            in_flight: terms.in_flight,
            rows_per_second: terms.rows_per_second,
            queued: terms.queued,
            pictures_per_day: terms.pictures_per_day,
        }),
        output_roots: terms.output_roots.clone(),
        ..Tenant::default()
    }
}

fn print_key(name: &str, api_key: &str, json: bool) -> Outcome {
    if json {
        return output::print_json(&Made { name, api_key });
    }
    eprintln!("janus: the key of {name}; it is shown this once");
    output::print_line(api_key);
    Ok(())
}

fn print_tenants(tenants: Vec<Tenant>, json: bool) -> Outcome {
    let shown = |tenant: Tenant| {
        let quotas = tenant.quotas.unwrap_or_default();
        Shown {
            role: if tenant.role() == v1::TenantRole::Operator { "operator" } else { "user" },
            name: tenant.name,
            weight: tenant.weight,
            in_flight: quotas.in_flight,
            rows_per_second: quotas.rows_per_second,
            queued: quotas.queued,
            pictures_per_day: quotas.pictures_per_day,
            output_roots: tenant.output_roots,
            created_unix_ms: tenant.created_unix_ms,
            revoked: tenant.revoked,
        }
    };
    let tenants: Vec<Shown> = tenants.into_iter().map(shown).collect();
    if json {
        return output::print_json(&All { tenants });
    }
    for t in tenants {
        let revoked = if t.revoked { "  revoked" } else { "" };
        output::print_line(&format!(
            "{:<20}  {:<8}  weight {:<4}  in flight {}  rows/s {}  queued {}  pictures/day {}{revoked}",
            t.name, t.role, t.weight, t.in_flight, t.rows_per_second, t.queued, t.pictures_per_day
        ));
    }
    Ok(())
}

fn print_usage(tenants: Vec<v1::TenantUsage>, json: bool, csv: bool) -> Outcome {
    let used = |t: v1::TenantUsage| {
        let v1::TenantUsage { name, rows, pictures, answers, bytes, .. } = t;
        Used { name, rows, pictures, answers, bytes }
    };
    let tenants: Vec<Used> = tenants.into_iter().map(used).collect();
    if json {
        return output::print_json(&All { tenants });
    }
    if csv {
        output::print_line("name,rows,pictures,answers,bytes");
    }
    for Used { name, rows, pictures, answers, bytes } in tenants {
        // No name has a comma.
        output::print_line(&match csv {
            true => format!("{name},{rows},{pictures},{answers},{bytes}"),
            false => format!("{name:<20}  {rows} rows  {pictures} pictures  {answers} answers  {bytes} bytes kept"),
        });
    }
    Ok(())
}

fn print_audit(entries: Vec<v1::AuditEntry>, json: bool) -> Outcome {
    let told = |e: v1::AuditEntry| Told { at_unix_ms: e.at_unix_ms, by: e.by, verb: e.verb, subject: e.subject };
    let entries: Vec<Told> = entries.into_iter().map(told).collect();
    if json {
        return output::print_json(&Log { entries });
    }
    for Told { at_unix_ms, by, verb, subject } in entries {
        output::print_line(&format!("{}  {by:<20}  {verb:<8}  {subject}", output::utc(at_unix_ms)));
    }
    Ok(())
}
