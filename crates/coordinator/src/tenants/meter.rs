//! What tenants use, and whether that is within their quotas: pure, time is given.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::Quotas;

/// Rates are taken over this.
const WINDOW: Duration = Duration::from_secs(60);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// What a tenant has used since it was made; `tenants/usage/<name>` in the store, JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) rows: u64,
    pub(crate) pictures: u64,
    pub(crate) answers: u64,
    /// Bytes of results and blobs that are kept.
    #[serde(default)]
    pub(crate) bytes: u64,
    /// A day (UTC, days since the Unix epoch), and the pictures that were asked for on it.
    pub(crate) today: (u64, u64),
}

/// Everybody's.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    tenants: BTreeMap<String, Gauge>,
}

#[derive(Debug, Default)]
struct Gauge {
    usage: Usage,
    /// Rows of this reign's pipelines that are in `usage` already.
    counted: u64,
    /// Rows at moments of the last minute.
    window: VecDeque<(Duration, u64)>,
}

impl Meter {
    /// Begins with what a predecessor counted.
    pub(crate) fn load(&mut self, tenant: &str, usage: Usage) {
        self.tenants.entry(tenant.to_owned()).or_default().usage = usage;
    }

    /// Everything that was counted.
    pub(crate) fn usages(&self) -> impl Iterator<Item = (&String, &Usage)> {
        self.tenants.iter().map(|(name, gauge)| (name, &gauge.usage))
    }

    /// The pipelines of this reign have computed `total` rows for a tenant by `now`.
    pub(crate) fn rows(&mut self, tenant: &str, total: u64, now: Duration) {
        let gauge = self.tenants.entry(tenant.to_owned()).or_default();
        gauge.usage.rows += total.saturating_sub(gauge.counted);
        gauge.counted = gauge.counted.max(total);
        let seen = gauge.usage.rows;
        gauge.window.push_back((now, seen));
        while gauge.window.len() > 1 && gauge.window.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            gauge.window.pop_front();
        }
    }

    /// What is kept for each tenant now; for others nothing is.
    pub(crate) fn bytes(&mut self, kept: &BTreeMap<String, u64>) {
        self.tenants.values_mut().for_each(|gauge| gauge.usage.bytes = 0);
        for (tenant, bytes) in kept {
            self.tenants.entry(tenant.clone()).or_default().usage.bytes = *bytes;
        }
    }

    /// An answer was asked for, or so many pictures.
    ///
    /// # Errors
    /// Which quota it would exceed, and when to come back.
    pub(crate) fn ask(
        &mut self,
        tenant: &str,
        pictures: u64,
        quotas: &Quotas,
        unix_ms: u64,
    ) -> Result<(), (String, Duration)> {
        let gauge = self.tenants.entry(tenant.to_owned()).or_default();
        let (day, left) = (unix_ms / DAY_MS, Duration::from_millis(DAY_MS - unix_ms % DAY_MS));
        if gauge.usage.today.0 != day {
            gauge.usage.today = (day, 0);
        }
        let most = quotas.pictures_per_day;
        if most > 0 && gauge.usage.today.1 + pictures > most {
            let asked = gauge.usage.today.1;
            return Err((format!("{asked} of {most} pictures a day are used, and {pictures} more are asked for"), left));
        }
        let rate = u64::from(quotas.rows_per_second);
        if rate > 0
            && let (Some((from, before)), Some((now, after))) = (gauge.window.front(), gauge.window.back())
        {
            let (rows, seconds) = (after - before, now.saturating_sub(*from).as_secs_f64().max(1.0));
            if rows as f64 > rate as f64 * WINDOW.as_secs_f64() {
                let over = rows as f64 / rate as f64 - seconds;
                let wait = Duration::from_secs_f64(over.clamp(1.0, WINDOW.as_secs_f64()));
                return Err((format!("{rows} rows were computed in {seconds:.0} s, the quota is {rate} a second"), wait));
            }
        }
        gauge.usage.today.1 += pictures;
        gauge.usage.pictures += pictures;
        gauge.usage.answers += u64::from(pictures == 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn pictures_of_a_day_end_with_it() {
        let (mut meter, quotas) = (Meter::default(), Quotas { pictures_per_day: 10, ..Quotas::default() });
        let noon = 20_000 * DAY_MS + DAY_MS / 2;
        assert!(meter.ask("a", 6, &quotas, noon).is_ok());
        let (why, wait) = meter.ask("a", 5, &quotas, noon).unwrap_err();
        assert!(why.contains("6 of 10 pictures"), "{why}");
        assert_eq!(wait, 12 * 60 * 60 * S);
        assert!(meter.ask("a", 4, &quotas, noon).is_ok() && meter.ask("b", 10, &quotas, noon).is_ok());
        assert!(meter.ask("a", 10, &quotas, noon + DAY_MS).is_ok());
        assert_eq!(meter.usages().next().unwrap().1.pictures, 20);
    }

    #[test]
    fn a_rate_is_kept_over_a_minute_and_recovers() {
        let (mut meter, quotas) = (Meter::default(), Quotas { rows_per_second: 10, ..Quotas::default() });
        (0..=30).for_each(|s| meter.rows("a", 30 * s, s as u32 * S));
        let (why, wait) = meter.ask("a", 0, &quotas, 0).unwrap_err();
        assert!(why.contains("900 rows") && why.contains("10 a second"), "{why}");
        assert!(wait >= S && wait <= 60 * S, "{wait:?}");
        (31..=100).for_each(|s| meter.rows("a", 900, s * S));
        assert!(meter.ask("a", 0, &quotas, 0).is_ok());
    }

    #[test]
    fn bytes_are_those_that_are_kept_now() {
        let mut meter = Meter::default();
        meter.bytes(&[("a".to_owned(), 7), ("b".to_owned(), 9)].into());
        meter.bytes(&[("b".to_owned(), 3)].into());
        let bytes: Vec<_> = meter.usages().map(|(_, usage)| usage.bytes).collect();
        assert_eq!(bytes, [0, 3]);
        // What an older version wrote down has none.
        let usage: Usage = serde_json::from_str(r#"{"rows":1,"pictures":2,"answers":3,"today":[4,5]}"#).unwrap();
        assert_eq!((usage.rows, usage.bytes), (1, 0));
    }

    #[test]
    fn rows_go_on_where_a_predecessor_stopped() {
        let mut meter = Meter::default();
        meter.load("a", Usage { rows: 100, ..Usage::default() });
        meter.rows("a", 7, S);
        meter.rows("a", 9, 2 * S);
        assert_eq!(meter.usages().next().unwrap().1.rows, 109);
    }
}
