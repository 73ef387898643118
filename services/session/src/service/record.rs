//! What of an execution is too large for its row: put into the object store, and taken out again.

use bytes::Bytes;

use super::Service;
use crate::{
    error::Error,
    spool::Spool,
    store::execution::{Model, Recorded},
};

/// What an execution is given to run.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) code: Bytes,
    pub(super) event: Bytes,
    pub(super) stdin: Bytes,
}

impl Service {
    /// Puts the input of a new execution that is too large for its row into the object store.
    pub(super) async fn spill_input(&self, row: &mut Model) -> Result<(), Error> {
        let large = |length: usize| length as u64 > self.config.inline_limit.0;
        if let Some(code) = row.code.take_if(|code| large(code.len())) {
            self.objects.put(&row.object_prefix, "code", Bytes::from(code)).await?;
        }
        if let Some(event) = row.event.take_if(|event| large(event.len())) {
            self.objects.put(&row.object_prefix, "event", Bytes::from(event)).await?;
        }
        if let Some(stdin) = row.stdin.take_if(|stdin| large(stdin.len())) {
            self.objects.put(&row.object_prefix, "stdin", Bytes::from(stdin)).await?;
        }
        Ok(())
    }

    /// The input of an execution, from its row and the object store.
    pub(super) async fn program(&self, row: &Model) -> Result<Program, Error> {
        let code = row.code.as_ref().map(|code| Bytes::copy_from_slice(code.as_bytes()));
        let event = row.event.as_ref().map(|event| Bytes::copy_from_slice(event.as_bytes()));
        let stdin = row.stdin.as_ref().map(|stdin| Bytes::copy_from_slice(stdin));
        Ok(Program {
            code: self.or_object(row, code, "code").await?,
            event: self.or_object(row, event, "event").await?,
            stdin: self.or_object(row, stdin, "stdin").await?,
        })
    }

    async fn or_object(&self, row: &Model, inline: Option<Bytes>, name: &str) -> Result<Bytes, Error> {
        match inline {
            Some(bytes) => Ok(bytes),
            None => self.objects.get(&row.object_prefix, name).await,
        }
    }

    /// Records one stream of output: the first bytes for the row, all of it in the object store when that
    /// is not all. `more` says that the executor did not send everything either.
    pub(super) async fn record_output(
        &self,
        row: &Model,
        name: &str,
        spool: &Spool,
        more: bool,
    ) -> Result<Recorded, Error> {
        if let Some(file) = spool.whole().await? {
            self.objects.put_file(&row.object_prefix, name, &file).await?;
        }
        let inline = spool.inline();
        let kept = i64::try_from(spool.kept()).unwrap_or(i64::MAX);
        Ok(Recorded { inline, kept, truncated: more || spool.truncated() })
    }

    /// Records a return value: the text for the row when it is short, and its size.
    pub(super) async fn record_value(
        &self,
        row: &Model,
        value: Bytes,
    ) -> Result<(Option<String>, i64), Error> {
        let size = i64::try_from(value.len()).unwrap_or(i64::MAX);
        if value.len() as u64 <= self.config.inline_limit.0 {
            return Ok((Some(String::from_utf8_lossy(&value).into_owned()), size));
        }
        let _room = self.objects.room(value.len()).await;
        self.objects.put(&row.object_prefix, "return_value", value).await?;
        Ok((None, size))
    }
}
