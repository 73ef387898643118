//! What a session goes through: a warm sandbox, or room for one, or room that warm ones make, or a place in the queue;
//! in the order in which `service.rs` tries these.

use std::{cell::RefCell, rc::Rc, time::Instant};

use futures::FutureExt;
use rand::Rng;
use sandmesh_proto::agent::{Sandbox, SandboxSpec, sandbox::State};

use super::{
    day::{Day, Event, SECOND, micros},
    demand::{Arrival, TEMPLATES},
};
use crate::{placement::Wanted, queue::Line, view};

/// How long a claim takes, and to remove a sandbox.
const CLAIM: u64 = SECOND / 25;
const REMOVAL: u64 = SECOND / 10;

/// After so long it is given up that a node answers.
const SILENCE: u64 = 20 * SECOND;

/// A session that has a sandbox, or is to get one.
#[derive(Debug)]
pub(super) struct Session {
    arrival: Arrival,
    spec: SandboxSpec,
    wanted: Wanted,
    /// Since when it waits for room, if it does or did.
    waits_since: Option<u64>,
}

/// Those that left the queue without having been served.
pub(super) type Gone = Rc<RefCell<Vec<u64>>>;

/// A session that waits for room. Whoever drops it says so.
#[derive(Debug)]
pub(super) struct Waiting {
    session: u64,
    gone: Gone,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gone.borrow_mut().push(self.session);
    }
}

/// The id of the sandbox of a session.
fn id_of(session: u64) -> String {
    format!("sbx_{session:016x}")
}

impl Day {
    /// A session is asked for.
    pub(super) fn ask(&mut self, arrival: Arrival) {
        self.outcome.arrived += 1;
        self.lately.arrived += 1;
        let session = self.outcome.arrived;
        let spec = arrival.spec(session);
        self.pools.note(arrival.template, self.time());
        let began = Instant::now();
        let warm = self.registry.take_warm(&spec);
        if let Some((_, node_id)) = &warm {
            self.registry.bind(&id_of(session), node_id, &spec);
            self.decided(began);
        }
        let template = arrival.template;
        let wanted = view::wanted(&spec);
        self.sessions.insert(session, Session { arrival, spec, wanted, waits_since: None });
        match warm {
            Some((warm_id, node_id)) => {
                self.pools.claimed(template, self.now);
                let node = self.by_id[&node_id];
                self.after(CLAIM, Event::Claimed { session, warm_id, node });
            }
            None => self.place(session, true),
        }
    }

    fn decided(&mut self, began: Instant) {
        let took = began.elapsed().as_secs_f64() * 1e6;
        self.outcome.decisions.add(took);
        self.lately.decisions.add(took);
    }

    pub(super) fn claimed(&mut self, session: u64, warm_id: &str, node: usize) {
        let Some(known) = self.sessions.get(&session) else { return };
        let (id, spec, template) = (id_of(session), known.spec.clone(), known.arrival.template);
        let agent = &mut self.agents[node];
        if agent.is_down {
            return self.after(SILENCE, Event::Away { session, node });
        }
        let node_id = agent.id.clone();
        let Some(gone) = agent.remove(warm_id) else {
            // It went away meanwhile: the next is tried, or one is made.
            self.registry.unbind(&id, &node_id);
            return self.place(session, true);
        };
        let there = Sandbox { claimed: true, ..agent.make(&id, &spec, State::Running) };
        self.registry.changed(&node_id, there);
        self.registry.changed(&node_id, gone);
        self.outcome.warm += 1;
        self.lately.warm += 1;
        self.check(node);
        let lasting = TEMPLATES[template].lasting(&mut self.random);
        self.after(micros(lasting), Event::End { session, node });
    }

    /// Somewhere with room, where warm ones make some, or in the queue.
    fn place(&mut self, session: u64, is_new: bool) {
        let Some(known) = self.sessions.get(&session) else { return };
        let (id, spec, wanted) = (id_of(session), known.spec.clone(), known.wanted.clone());
        let began = Instant::now();
        let in_turn = is_new && self.queue.len() > 0 && self.registry.has_room(&wanted);
        let node_id = (!in_turn).then(|| self.registry.reserve(&id, &spec, (&wanted, &[]))).flatten();
        if let Some(node_id) = node_id {
            self.decided(began);
            return self.send(session, &node_id);
        }
        let given_up = (!in_turn).then(|| self.registry.give_up_warm(&wanted)).flatten();
        let could_run = given_up.is_some() || self.registry.could_run(&wanted, &[]);
        self.decided(began);
        match given_up {
            Some((warm_id, node_id)) => {
                let node = self.by_id[&node_id];
                self.after(REMOVAL, Event::Room { session, warm_id, node });
            }
            None if could_run => self.wait(session),
            None => self.refuse(session),
        }
    }

    /// A session's sandbox goes to a node, which has the last word.
    fn send(&mut self, session: u64, node_id: &str) {
        let Some(known) = self.sessions.get(&session) else { return };
        let node = self.by_id[node_id];
        if self.agents[node].is_down {
            return self.after(SILENCE, Event::Away { session, node });
        }
        let (id, spec, template) = (id_of(session), known.spec.clone(), known.arrival.template);
        if !self.agents[node].takes(&spec) {
            self.outcome.refused_by_nodes += 1;
            self.registry.unbind(&id, node_id);
            return self.wait(session);
        }
        let making = self.make(template, node);
        let there = self.agents[node].make(&id, &spec, State::Creating);
        self.registry.changed(node_id, there);
        self.check(node);
        self.after(making, Event::Made { session, node });
    }

    /// How long it takes to make a sandbox; its image is there then.
    fn make(&mut self, template: usize, node: usize) -> u64 {
        let template = &TEMPLATES[template];
        let is_there = !self.agents[node].images.insert(template.image());
        self.outcome.image_hits.0 += u64::from(is_there);
        self.outcome.image_hits.1 += 1;
        let making = template.making * self.random.random_range(0.8..1.6);
        let pulling = template.pulling * self.random.random_range(0.7..2.0);
        micros(if is_there { making } else { making + pulling })
    }

    pub(super) fn made(&mut self, session: u64, node: usize) {
        let id = id_of(session);
        let Some(known) = self.sessions.get(&session) else { return };
        let agent = &mut self.agents[node];
        if !agent.sandboxes.contains_key(&id) {
            return;
        }
        let there = agent.make(&id, &known.spec, State::Running);
        let node_id = agent.id.clone();
        self.registry.changed(&node_id, there);
        self.outcome.cold += 1;
        self.lately.cold += 1;
        let lasting = TEMPLATES[known.arrival.template].lasting(&mut self.random);
        self.after(micros(lasting), Event::End { session, node });
    }

    /// A warm sandbox was removed for a session.
    pub(super) fn room_made(&mut self, session: u64, warm_id: &str, node: usize) {
        self.remove(warm_id, node);
        self.place(session, false);
    }

    /// A node did not answer whether it has the sandbox of a session.
    pub(super) fn away(&mut self, session: u64, node: usize) {
        self.registry.unbind(&id_of(session), &self.agents[node].id);
        if self.sessions.remove(&session).is_some() {
            self.outcome.lost += 1;
        }
    }

    pub(super) fn end_of(&mut self, session: u64, node: usize) {
        let id = id_of(session);
        if !self.agents[node].sandboxes.contains_key(&id) {
            return;
        }
        self.remove(&id, node);
        match self.sessions.remove(&session) {
            Some(_) => self.outcome.ended += 1,
            None => self.outcome.wrong += 1,
        }
    }

    /// A sandbox went with its machine.
    pub(super) fn lose_session(&mut self, id: &str) {
        let number = id.strip_prefix("sbx_").and_then(|number| u64::from_str_radix(number, 16).ok());
        if number.is_some_and(|session| self.sessions.remove(&session).is_some()) {
            self.outcome.lost += 1;
        }
    }

    fn remove(&mut self, id: &str, node: usize) {
        let agent = &mut self.agents[node];
        if let Some(gone) = agent.remove(id) {
            let node_id = agent.id.clone();
            self.registry.changed(&node_id, gone);
        }
    }

    fn check(&mut self, node: usize) {
        self.outcome.exceeded += u64::from(self.agents[node].is_over());
    }

    fn wait(&mut self, session: u64) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let is_first = known.waits_since.is_none();
        known.waits_since.get_or_insert(self.now);
        let line = Line {
            tenant: known.arrival.tenant.clone(),
            template_id: TEMPLATES[known.arrival.template].id.to_owned(),
        };
        // Who finds no place, or leaves for it, says so by being dropped.
        drop(self.queue.join(line, Waiting { session, gone: Rc::clone(&self.gone) }));
        self.refuse_gone();
        self.registry.room().notify_one();
        if is_first {
            let most = self.config.queue.max_wait.0.as_secs_f64();
            self.after(micros(most), Event::Impatient(session));
        }
    }

    pub(super) fn impatient(&mut self, session: u64) {
        self.queue.leave(|waiting| waiting.session == session);
        self.refuse_gone();
    }

    /// Those that left the queue without having been served.
    fn refuse_gone(&mut self) {
        let gone = std::mem::take(&mut *self.gone.borrow_mut());
        gone.into_iter().for_each(|session| self.refuse(session));
    }

    fn refuse(&mut self, session: u64) {
        self.lately.waited += 1;
        match self.sessions.remove(&session) {
            Some(_) => self.outcome.refused += 1,
            None => self.outcome.wrong += 1,
        }
    }

    /// Gives room to those who wait, if there may be some since it was looked last.
    pub(super) fn serve_queue(&mut self) {
        if self.queue.len() == 0 || self.registry.room().notified().now_or_never().is_none() {
            return;
        }
        let (mut in_vain, mut nodes): (Vec<&Wanted>, Vec<String>) = (Vec::new(), Vec::new());
        let (sessions, registry) = (&self.sessions, &self.registry);
        let served = self.queue.serve(|waiting| {
            let Some(known) = sessions.get(&waiting.session) else { return false };
            if in_vain.contains(&&known.wanted) {
                return false;
            }
            let id = id_of(waiting.session);
            let node_id = registry.reserve(&id, &known.spec, (&known.wanted, &[]));
            let is_served = node_id.is_some();
            nodes.extend(node_id);
            if !is_served {
                in_vain.push(&known.wanted);
            }
            is_served
        });
        let served: Vec<u64> = served.into_iter().map(|waiting| waiting.session).collect();
        // They left because they were served.
        self.gone.borrow_mut().clear();
        for (session, node_id) in served.into_iter().zip(nodes) {
            let since = self.sessions.get(&session).and_then(|known| known.waits_since);
            self.outcome.waits.add((self.now - since.unwrap_or(self.now)) as f64 / SECOND as f64);
            self.lately.waited += 1;
            self.send(session, &node_id);
        }
    }

    /// Has a warm sandbox made.
    pub(super) fn start_warm(&mut self, template: usize) {
        let id = format!("sbx_f{:015x}", self.random.random::<u64>() >> 4);
        let (spec, now) = (TEMPLATES[template].spec(), self.time());
        if let Some(pool) = self.pools.pool(template) {
            pool.starting.insert(id.clone(), now);
        }
        let wanted = view::wanted(&spec);
        let crowded = self.config.pools.fill_percent.into();
        let began = Instant::now();
        let node_id = self.registry.reserve_for_warm(&id, &spec, (&wanted, crowded, &[]));
        self.decided(began);
        let node = node_id.as_ref().map(|node_id| self.by_id[node_id]);
        let Some(node) = node.filter(|node| self.agents[*node].takes(&spec)) else {
            node_id.iter().for_each(|node_id| self.registry.unbind(&id, node_id));
            self.pools.started(template, &id, Err("no room".to_owned()), (self.now, now));
            return;
        };
        let took = self.make(template, node);
        let there = self.agents[node].make(&id, &spec, State::Creating);
        let node_id = self.agents[node].id.clone();
        self.registry.changed(&node_id, there);
        self.check(node);
        self.after(took, Event::WarmMade { template, id, node, took });
    }

    pub(super) fn warm_made(&mut self, template: usize, id: &str, node: usize, took: u64) {
        let now = (self.now, self.time());
        let agent = &mut self.agents[node];
        if !agent.sandboxes.contains_key(id) {
            self.pools.started(template, id, Err("its node is gone".to_owned()), now);
            return;
        }
        let there = Sandbox {
            created_at: Some(sandmesh_mesh::timestamp(now.1)),
            ..agent.make(id, &TEMPLATES[template].spec(), State::Running)
        };
        agent.sandboxes.insert(id.to_owned(), there.clone());
        let node_id = agent.id.clone();
        self.registry.changed(&node_id, there);
        if let Some(lag) = self.pools.started(template, id, Ok(took), now) {
            self.outcome.refills.add(lag as f64 / SECOND as f64);
        }
    }

    pub(super) fn warm_removed(&mut self, template: usize, id: &str, node: usize) {
        self.remove(id, node);
        let place = (id.to_owned(), self.agents[node].id.clone());
        if let Some(pool) = self.pools.pool(template) {
            pool.removing.remove(&place);
        }
    }
}
