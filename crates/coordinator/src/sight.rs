//! What a coordinator shows of itself whenever somebody reads its metrics: units, queues, pipelines, members.

use std::collections::BTreeMap;
use std::sync::Arc;

use opentelemetry::metrics::Meter;
use opentelemetry::{KeyValue, global};

use crate::conduct::run::View;
use crate::drive::DriverHandle;

/// The name under which instruments and spans are known.
pub(crate) const SCOPE: &str = "janus";
/// Tenants that one pipeline's metrics name...
pub(crate) const TENANTS: usize = 64;
/// ...and what all others are called.
pub(crate) const OTHER: &str = "other";

/// Seconds of a step: from a tiny model to prefill on a slow machine.
pub(crate) const STEPS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// Seconds that somebody waits.
pub(crate) const WAITS: [f64; 16] =
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0];

/// What is read of one driver.
type Read = fn(&DriverHandle) -> u64;

/// Registers what is read of pipelines; `drivers` are those of the moment. Once in a process.
pub fn observe_drivers(drivers: impl Fn() -> Vec<DriverHandle> + Send + Sync + 'static) {
    let (meter, drivers) = (global::meter(SCOPE), Arc::new(drivers));
    let ready: Read = |driver| u64::from(*driver.ready().borrow());
    let stages: Read = |driver| driver.placed().map_or(0, |placement| placement.stages.len() as u64);
    let gauges: [(&'static str, &'static str, Read); 4] = [
        ("janus.queue.row_steps", "Rows still to be computed for everything that was taken on", |d| d.backlog() as u64),
        ("janus.pipeline.ready", "1 if a canary went through and it was not lost since", ready),
        ("janus.pipeline.epoch", "Grows with each placement", |d| d.history().0),
        ("janus.pipeline.stages", "Stages it is placed on", stages),
    ];
    for (name, about, read) in gauges {
        let drivers = drivers.clone();
        let gauge = meter.u64_observable_gauge(name).with_description(about);
        let observe = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            for (driver, pipeline) in drivers().iter().zip(1_i64..) {
                to.observe(read(driver), &[KeyValue::new("pipeline", pipeline)]);
            }
        };
        gauge.with_callback(observe).build();
    }
    let units = meter.u64_observable_gauge("janus.units").with_description("Pictures and answers");
    let observe = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
        for (driver, pipeline) in drivers().iter().zip(1_i64..) {
            let (queued, running) = driver.counts();
            for (state, count) in [("queued", queued), ("running", running), ("parked", driver.parked())] {
                to.observe(count as u64, &[KeyValue::new("pipeline", pipeline), KeyValue::new("state", state)]);
            }
        }
    };
    units.with_callback(observe).build();
}

/// How a coordinator sees its cluster.
pub(crate) struct Outlook {
    /// It leads.
    pub(crate) leads: bool,
    /// The leader's epoch.
    pub(crate) epoch: u64,
    pub(crate) view: View,
}

/// Registers what is read of the cluster. Once in a process.
pub(crate) fn observe_cluster(outlook: impl Fn() -> Outlook + Send + Sync + 'static) {
    let (meter, outlook) = (global::meter(SCOPE), Arc::new(outlook));
    gauge(&meter, "janus.leader", "1 if this coordinator leads", &outlook, |o| u64::from(o.leads));
    gauge(&meter, "janus.cluster.epoch", "Fencing epoch of the leader", &outlook, |o| o.epoch);
    let about = "0 while the store cannot be reached: new requests are not durable";
    gauge(&meter, "janus.store.reachable", about, &outlook, |o| u64::from(!o.view.stale));
    let members = meter.u64_observable_gauge("janus.members").with_description("Members by role and state");
    let observe = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
        // Nobody who serves is a number too.
        let serving = ["stage", "encoder", "decoder"].map(|role| ((role.to_owned(), "serving"), 0));
        let mut counts: BTreeMap<(String, &'static str), u64> = serving.into();
        for (member, state) in outlook().view.members {
            for role in &member.roles {
                *counts.entry((format!("{role:?}").to_lowercase(), state)).or_default() += 1;
            }
        }
        for ((role, state), count) in counts {
            to.observe(count, &[KeyValue::new("role", role), KeyValue::new("state", state)]);
        }
    };
    members.with_callback(observe).build();
}

fn gauge<O>(meter: &Meter, name: &'static str, about: &'static str, outlook: &Arc<O>, read: fn(&Outlook) -> u64)
where
    O: Fn() -> Outlook + Send + Sync + 'static,
{
    let outlook = outlook.clone();
    let gauge = meter.u64_observable_gauge(name).with_description(about);
    gauge.with_callback(move |to| to.observe(read(&outlook()), &[])).build();
}
