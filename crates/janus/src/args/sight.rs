//! What a server lets be seen of itself.

use clap::{Args, ValueEnum};

/// Flags of every server.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Sight {
    /// Serve metrics for Prometheus at http://ADDR/metrics
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<String>,
    /// Push metrics and traces over gRPC to the OpenTelemetry collector at URL [env: OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long, value_name = "URL")]
    pub(crate) otlp: Option<String>,
    /// How log lines are written to stderr
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One object a line
    Json,
}

impl Sight {
    /// Where the collector is, if there is one.
    pub(crate) fn collector(&self) -> Option<String> {
        let asked = self.otlp.clone().or_else(|| std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok());
        asked.filter(|url| !url.is_empty())
    }

    /// Whether anybody will look at what is counted.
    pub(crate) fn counts(&self) -> bool {
        self.metrics.is_some() || self.collector().is_some()
    }

    /// The flags for another process of the same cluster, which serves its metrics at `metrics`.
    pub(crate) fn passed_on(&self, metrics: Option<String>) -> Vec<std::ffi::OsString> {
        let mut flags = Vec::new();
        let mut flag = |flag: &str, value: Option<&str>| {
            if let Some(value) = value {
                flags.extend([flag.into(), value.into()]);
            }
        };
        flag("--metrics", metrics.as_deref());
        flag("--otlp", self.otlp.as_deref());
        flag("--log-format", (self.log_format == LogFormat::Json).then_some("json"));
        flags
    }
}
