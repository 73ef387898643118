//! Logs to stderr, and traces by OTLP where an endpoint is configured.

use std::io::IsTerminal;

use anyhow::Context;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{LogFormat, MeshConfig};

/// The telemetry of this process. Dropping it does not flush: call [`Telemetry::flush`].
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

/// The exporter's own traffic would trace itself; these never reach it.
const EXPORT_FILTER: &str = "info,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off";

impl Telemetry {
    /// Sets up logs and traces for the process.
    ///
    /// # Errors
    /// When a filter or the endpoint cannot be used, or a subscriber is set already.
    pub fn init(config: &MeshConfig) -> anyhow::Result<Self> {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let filter = EnvFilter::try_new(&config.log_filter)
            .with_context(|| format!("setting `mesh.log_filter`: `{}` is not a filter", config.log_filter))?;
        let provider = exporter(&config.otlp_endpoint)?;
        let traces = provider.as_ref().map(|provider| {
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("sandmesh"));
            layer.with_filter(EnvFilter::new(EXPORT_FILTER))
        });
        let logs = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        let logs: Box<dyn Layer<Registry> + Send + Sync> = match config.log_format {
            LogFormat::Text => logs.compact().with_filter(filter).boxed(),
            LogFormat::Json => logs.json().with_filter(filter).boxed(),
        };
        tracing_subscriber::registry().with(logs).with(traces).try_init()?;
        Ok(Self(provider))
    }

    /// Sends what is not sent yet.
    pub fn flush(&self) {
        if let Some(Err(error)) = self.0.as_ref().map(SdkTracerProvider::shutdown) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

fn exporter(endpoint: &str) -> anyhow::Result<Option<SdkTracerProvider>> {
    if endpoint.is_empty() {
        return Ok(None);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .with_context(|| format!("setting `mesh.otlp_endpoint`: `{endpoint}`"))?;
    let resource = Resource::builder().with_service_name("sandmesh").build();
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
}
