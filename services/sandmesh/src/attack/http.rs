//! Plain HTTP/1.1, byte by byte, for requests that no decent client would send.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much of an answer is read.
const LONGEST: u64 = 4 << 20;

/// The gateway's port.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) address: String,
    key: Option<String>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    /// 0 when the connection was closed without an answer.
    pub(super) status: u16,
    pub(super) text: String,
}

impl Reply {
    /// A header's value.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let head = self.text.split("\r\n\r\n").next().unwrap_or_default();
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The body, as it is on the wire.
    pub(super) fn body(&self) -> &str {
        self.text.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }

    /// Refused by a rule, or by closing the connection.
    pub(super) fn is_refusal(&self) -> bool {
        self.status == 0 || (400..500).contains(&self.status)
    }
}

impl Door {
    pub(super) fn new(url: &str, key: Option<&str>) -> anyhow::Result<Self> {
        let Some(address) = url.strip_prefix("http://") else { bail!("`{url}` does not begin with http://") };
        Ok(Self { address: address.trim_end_matches('/').to_owned(), key: key.map(str::to_owned) })
    }

    /// A request with a body (none if empty), of JSON unless a header says otherwise, and more header lines.
    pub(super) async fn send(&self, line: &str, headers: &[&str], body: &str) -> anyhow::Result<Reply> {
        let mut text = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|header| header.starts_with("Host:")) {
            text.push_str(&format!("Host: {}\r\n", self.address));
        }
        if let Some(key) =
            self.key.as_ref().filter(|_| !headers.iter().any(|h| h.starts_with("Authorization:")))
        {
            text.push_str(&format!("Authorization: Bearer {key}\r\n"));
        }
        for header in headers {
            text.push_str(&format!("{header}\r\n"));
        }
        if !body.is_empty() {
            if !headers.iter().any(|header| header.starts_with("Content-Type:")) {
                text.push_str("Content-Type: application/json\r\n");
            }
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(body);
        self.raw(text.as_bytes()).await
    }

    /// Any bytes.
    pub(super) async fn raw(&self, bytes: &[u8]) -> anyhow::Result<Reply> {
        timeout(PATIENCE, self.exchange(bytes)).await.context("the gateway did not answer a request")?
    }

    /// A connection on which nothing was said yet.
    pub(super) async fn connect(&self) -> anyhow::Result<TcpStream> {
        let connect = timeout(PATIENCE, TcpStream::connect(&self.address)).await;
        connect
            .context("no connection in time")?
            .with_context(|| format!("cannot connect to {}", self.address))
    }

    async fn exchange(&self, bytes: &[u8]) -> anyhow::Result<Reply> {
        let stream = self.connect().await?;
        let (reader, mut writer) = stream.into_split();
        let mut answer = Vec::new();
        // A server that refuses closes before everything was written; its answer counts.
        let write = async { writer.write_all(bytes).await.is_ok() };
        let mut limited = reader.take(LONGEST);
        let read = limited.read_to_end(&mut answer);
        let _ = tokio::join!(write, read);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok(Reply { status, text })
    }
}
