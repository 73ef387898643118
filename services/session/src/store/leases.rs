//! Leases: which of several processes does what is to be done once, by the clock of the database.

use std::{sync::Arc, time::Duration};

use sandmesh_mesh::database::Transaction;
use sea_orm::{
    ConnectionTrait, DbErr,
    entity::prelude::*,
    sea_query::{ExprTrait, OnConflict, Query},
};

use super::{Lock, Store};
use crate::error::Error;

const TABLE: &str = "session_leases";

/// Who has a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Empty when nobody has.
    pub(crate) holder: String,
    /// Grows with each holder.
    pub(crate) token: i64,
}

impl Store {
    /// Has `holder` hold a lease for `term` from now, unless another does. Gives who holds it.
    pub(crate) async fn hold_lease(&self, name: &str, holder: &str, term: Duration) -> Result<Lease, Error> {
        let mut first = Query::insert();
        first.into_table(TABLE).columns(["name", "holder", "token", "expires_at"]);
        // It has as many values as columns.
        let _ = first.values([name.into(), "".into(), 0_i64.into(), 0_i64.into()]);
        first.on_conflict(OnConflict::column("name").do_nothing_on(["name"]).to_owned());
        let of_name = Expr::col("name").eq(name);
        let mut renew = Query::update();
        renew.table(TABLE).value("expires_at", self.end(term)).and_where(of_name.clone());
        renew.and_where(Expr::col("holder").eq(holder)).and_where(Expr::col("expires_at").gt(self.now()));
        let mut take = Query::update();
        take.table(TABLE).value("holder", holder).value("token", Expr::col("token").add(1_i64));
        take.value("expires_at", self.end(term)).and_where(of_name.clone());
        take.and_where(Expr::col("expires_at").lte(self.now()));
        let mut read = Query::select();
        read.columns(["holder", "token"]).from(TABLE).and_where(of_name);
        let hold = async |transaction: Arc<Transaction>| {
            if transaction.execute(&renew).await?.rows_affected() == 0 {
                transaction.execute(&first).await?;
                transaction.execute(&take).await?;
            }
            let row = transaction.query_one(&read).await?;
            let row = row.ok_or_else(|| DbErr::RecordNotFound(format!("lease `{name}`")))?;
            Ok(Lease { holder: row.try_get("", "holder")?, token: row.try_get("", "token")? })
        };
        Ok(self.transaction(Lock::Nothing, hold).await?)
    }

    /// Has nobody hold a lease that `holder` holds.
    pub(crate) async fn release_lease(&self, name: &str, holder: &str) -> Result<(), Error> {
        let mut release = Query::update();
        release.table(TABLE).value("expires_at", 0_i64).value("holder", "");
        release.and_where(Expr::col("name").eq(name)).and_where(Expr::col("holder").eq(holder));
        self.write(&release).await?;
        Ok(())
    }
}
