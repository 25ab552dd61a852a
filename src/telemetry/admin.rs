//! The admin port: `/healthz`, `/readyz` and `/metrics`, for orchestrators and Prometheus. No authentication, nothing that
//! changes anything.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use super::Health;
use crate::{Error, Result};

/// Often enough that samples of unread histograms stay few, rare enough to cost nothing.
const UPKEEP: Duration = Duration::from_secs(5);

/// A bound port that does not answer yet: a port that is taken is found before the job starts.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

impl Admin {
    pub async fn bind(address: SocketAddr) -> Result<Admin> {
        let refused = |error: std::io::Error| Error::Setting {
            key: "admin.listen".into(),
            problem: format!("cannot listen on {address}: {error}"),
            remedy: "choose another address or port in [admin] listen, or \"\" for none".into(),
        };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Admin { listener, address })
    }

    /// What it is bound to; the port is a real one even where the settings said 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` resolves, then finishes the requests under way.
    pub async fn serve(
        self,
        metrics: PrometheusHandle,
        health: Health,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let upkeep = metrics.clone();
        let upkeep = tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkeep.run_upkeep();
            }
        });
        let served = axum::serve(self.listener, router(metrics, health)).with_graceful_shutdown(shutdown).await;
        upkeep.abort();
        served.map_err(Error::io("serving the admin port"))
    }
}

#[derive(Clone)]
struct Shown {
    metrics: PrometheusHandle,
    health: Health,
}

fn router(metrics: PrometheusHandle, health: Health) -> Router {
    Router::new()
        .route("/healthz", get(async |State(shown): State<Shown>| status(shown.health.is_alive(), &shown.health)))
        .route("/readyz", get(async |State(shown): State<Shown>| status(shown.health.is_ready(), &shown.health)))
        .route("/metrics", get(async |State(shown): State<Shown>| render(&shown)))
        .with_state(Shown { metrics, health })
}

fn status(good: bool, health: &Health) -> Response {
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(header::CONTENT_TYPE, "application/json")], format!("{}\n", health.to_json())).into_response()
}

fn render(shown: &Shown) -> Response {
    shown.health.record_ages();
    // The version of the text format is part of its type; Prometheus 3 refuses what has none.
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shown.metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_and_stops() {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = admin.address();
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        let (health, shutdown) = (Health::new(1), CancellationToken::new());
        let server = tokio::spawn(admin.serve(metrics, health.clone(), shutdown.clone().cancelled_owned()));

        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains(r#""status":"starting""#), "{answer}");
        health.lookups_ready();
        health.working(0);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        health.waiting(0, "Kafka is away");
        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("Kafka is away"), "{answer}");
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        health.stopped(0, "halted");
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 503"));
        let answer = ask(address, "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("version=0.0.4"), "{answer}");
        assert!(ask(address, "/").await.starts_with("HTTP/1.1 404"));

        let taken = Admin::bind(address).await.unwrap_err();
        assert!(taken.to_string().starts_with("admin.listen: cannot listen on "), "{taken}");
        assert_eq!(taken.exit_code(), 2);

        shutdown.cancel();
        server.await.unwrap().unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }
}
