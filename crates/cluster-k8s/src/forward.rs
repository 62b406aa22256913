//! A stream to a pod through the API server, for a control plane outside of the cluster.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::Portforwarder;
use larder_agent::wire::{Dial, Stream};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::error::chain;

/// A port of a pod. The API server carries the bytes and sees only TLS.
pub(crate) struct ForwardDial {
    pub(crate) pods: Api<Pod>,
    pub(crate) pod: String,
    pub(crate) port: u16,
}

#[async_trait]
impl Dial for ForwardDial {
    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let forwarder = self.pods.portforward(&self.pod, &[self.port]).await;
        let mut forwarder = forwarder.map_err(|error| io::Error::other(chain(&error)))?;
        let stream = forwarder
            .take_stream(self.port)
            .ok_or_else(|| io::Error::other("the API server forwards no such port"))?;
        Ok(Box::new(Forwarded { stream, forwarder }))
    }

    fn target(&self) -> String {
        format!("pod {} port {} by way of the API server", self.pod, self.port)
    }
}

/// The stream, and the task that carries its bytes: they end together.
struct Forwarded {
    stream: DuplexStream,
    forwarder: Portforwarder,
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
