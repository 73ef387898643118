//! The texts of the statements that are written for every execution. Making them took an eighth of the time of a
//! durable record, and there are few: each is made once.

use std::{
    collections::HashMap,
    mem::{Discriminant, discriminant},
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use sea_orm::{DbBackend, Statement, StatementBuilder, Value};

use crate::lifecycle::ExecutionState;

/// All that the text of such a statement depends on, but for the database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Of a new execution, in a session that a process owns or that none does.
    Insert { is_owned: bool },
    /// Out of these states, with or without the time of the start.
    End { from: Vec<ExecutionState>, with_start: bool },
}

/// A statement of a kind, about `subject`.
#[derive(Debug)]
pub(super) struct OfKind<T, S> {
    pub(super) kind: Kind,
    pub(super) subject: T,
    /// Gives its values, in the order in which they are in the text.
    pub(super) values: fn(&T) -> Vec<Value>,
    /// Makes all of it.
    pub(super) make: fn(&T) -> S,
}

type Texts = RwLock<HashMap<(Discriminant<DbBackend>, Kind), Arc<str>>>;

static TEXTS: LazyLock<Texts> = LazyLock::new(Texts::default);

impl<T: Sync, S: StatementBuilder> StatementBuilder for OfKind<T, S> {
    fn build(&self, backend: &DbBackend) -> Statement {
        let key = (discriminant(backend), self.kind.clone());
        let known = TEXTS.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let Some(text) = known else {
            let made = (self.make)(&self.subject).build(backend);
            TEXTS.write().unwrap_or_else(PoisonError::into_inner).insert(key, made.sql.as_str().into());
            return made;
        };
        Statement::from_sql_and_values(*backend, &*text, (self.values)(&self.subject))
    }
}
