//! `sandmesh-executor template`: warms up a Python in a jail, and writes a snapshot of it to the standard output.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::{Pid, getppid},
};
use tokio::{io::AsyncReadExt as _, time::timeout};

use super::{
    Area, Content, PAGE, Snapshot, Stamp,
    maps::{self, Map},
    template_dir,
};
use crate::{
    cli::CopyOptions,
    isolation::{
        IsolationOptions, Need, Sandbox,
        cgroup::Limits,
        house::{self, Plan},
        jail::TOOLS,
        parent::{Host, Parent, SpawnError},
        process::{Keeper, Kinship},
    },
    native::snapshot::{AUXILIARY_WORDS, Stand},
};

/// How long a Python of the snapshot may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// More than that is nothing to have in a file.
const MOST_MEMORY: u64 = 256 << 20;

/// What cannot be had again: memory of a device, of a shadow stack, of large pages, and what is locked.
const UNKNOWN_FLAGS: [&str; 5] = ["io", "pf", "ss", "ht", "lo"];

/// Takes the snapshot.
pub(crate) fn run(options: &CopyOptions) -> anyhow::Result<()> {
    let mut file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let owner = getppid();
    let isolation = IsolationOptions { cgroups: Need::Off, ..options.isolation.clone() };
    let plan = Plan {
        dir: &template_dir(&options.into),
        sandbox_id: "template",
        limits: Limits::default(),
        disk_bytes: 0,
        disk_reserve_bytes: 0,
        isolation: &isolation,
        layers: None,
        layer: None,
        copies: Some(&options.into),
        shares_snapshots: false,
        proxy: None,
        workspace: None,
        admission: None,
    };
    let (sandbox, _listener) = house::build(plan)?;
    // Now that the privileges are given up, which would undo it.
    set_pdeathsig(Signal::SIGKILL)?;
    ensure!(getppid() == owner, "who wants the snapshot has ended");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let template = Parent::template(&sandbox).map_err(told)?;
        let (pid, stand) = template.stands().await.map_err(told)?;
        let written = write(pid, stand, &mut file);
        template.end().await;
        written?;
        timeout(PATIENCE, try_out(&sandbox, file)).await.context("it takes too long to use it")?
    })
}

/// Has a Python made of the snapshot answer a request, as it does in sandboxes.
async fn try_out(sandbox: &Sandbox, snapshot: File) -> anyhow::Result<()> {
    const CODE: &str = "def handler(event): return event['a'] * 7";
    const EVENT: &str = "{\"a\": 6}";
    let parent = Arc::new(Parent::restored(snapshot, sandbox).map_err(told)?);
    parent.is_warm().await.map_err(told)?;
    ensure!(!parent.is_refused(), "{}", parent.complaint());
    let child = sandbox.order(Arc::clone(&parent), Host::Python, Kinship::OnlyChild, Keeper::Nobody);
    let mut child = child.await.map_err(told)?;
    let head = format!("\n\nhandler\n{}\n{}\n4096\n1\n1000\n0\n\n", CODE.len(), EVENT.len());
    let (request, result) = (child.request.take().context("no request")?, child.result.take());
    request.write_all(vec![head.into(), CODE.into(), EVENT.into()]).await?;
    let mut answer = Vec::new();
    result.context("no result")?.read_to_end(&mut answer).await?;
    child.dismantle(PATIENCE).await;
    ensure!(answer == b"R42", "its child answered {:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn told(err: SpawnError) -> anyhow::Error {
    anyhow::Error::new(err.source).context(err.stage)
}

/// The template, seen from outside.
struct Template {
    process: PathBuf,
    memory: File,
    page_map: File,
}

fn write(pid: Pid, stand: Stand, file: &mut File) -> anyhow::Result<()> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let open = |name| File::open(process.join(name)).with_context(|| format!("cannot open its {name}"));
    let template = Template { memory: open("mem")?, page_map: open("pagemap")?, process };
    let maps = maps::of(&template.process).context("cannot read its maps")?;
    let mut writes = Vec::new();
    let snapshot = template.describe(&maps, stand, &mut writes)?;
    ensure!(snapshot.bytes <= MOST_MEMORY, "its memory has {} bytes", snapshot.bytes);
    // A file that is replaced meanwhile has another name now.
    ensure!(maps::of(&template.process)? == maps, "a file of it was replaced");
    snapshot.write(file)?;
    for (begin, end) in writes {
        file.write_all(&template.read(begin, end).context("cannot read its memory")?)?;
    }
    Ok(())
}

impl Template {
    /// Notes what is where, and what is to be written after that.
    fn describe(
        &self,
        maps: &[Map],
        stand: Stand,
        writes: &mut Vec<(usize, usize)>,
    ) -> anyhow::Result<Snapshot> {
        let mut offset = 0;
        let mut place = |begin: usize, end: usize| {
            writes.push((begin, end));
            let here = offset;
            offset += (end - begin) as u64;
            here
        };
        let (mut areas, mut own, mut kernel, mut stack) = (Vec::new(), Vec::new(), Vec::new(), None);
        for map in maps {
            let Map { begin, end, .. } = *map;
            match map.name.as_str() {
                "[vsyscall]" => {}
                name if name.starts_with("[v") => kernel.push((name.to_owned(), begin, end)),
                "[stack]" => {
                    let used = stand.stack / PAGE * PAGE;
                    stack = Some((used, end, place(used, end)));
                }
                _ => {
                    let unknown = UNKNOWN_FLAGS.iter().find(|flag| map.has_flag(flag));
                    ensure!(unknown.is_none(), "it has memory with the flag {}", unknown.unwrap_or(&""));
                    let content = match self.file(map)? {
                        Some(file) => file,
                        None if map.has_flag("wf") => Content::Wiped(map.has_flag("dp")),
                        None if map.access == "---p" => Content::Nothing,
                        None => {
                            own.extend(self.own_pages(begin, end)?);
                            Content::Memory(place(begin, end))
                        }
                    };
                    areas.push(Area { begin, end, access: map.access.clone(), content });
                }
            }
        }
        Ok(Snapshot {
            stack_pointer: stand.stack,
            thread: stand.thread,
            handover: stand.handover,
            areas,
            stack: stack.context("it has no stack")?,
            kernel,
            own,
            layout: self.layout(stand)?,
            auxiliary: self.auxiliary()?,
            program: fs::read_link(self.process.join("exe")).context("cannot see its program")?,
            bytes: writes.iter().map(|(begin, end)| (end - begin) as u64).sum(),
        })
    }

    /// What a file has there, if that is what is in memory, and each jail shows the same file.
    fn file(&self, map: &Map) -> anyhow::Result<Option<Content>> {
        let path = Path::new(&map.name);
        let is_elsewhere = !path.is_absolute() || path.starts_with(TOOLS) || map.name.starts_with("/memfd:");
        if is_elsewhere || map.access.contains('w') || !self.own_pages(map.begin, map.end)?.is_empty() {
            return Ok(None);
        }
        let shown = self.process.join("root").join(path.strip_prefix("/")?);
        let found = shown.metadata().with_context(|| format!("cannot find {}", path.display()))?;
        Ok(Some(Content::File(path.to_owned(), map.offset, Stamp::of(&found))))
    }

    /// Pages in a row that are this process's own: in memory, or put aside, and of no file. See
    /// <https://docs.kernel.org/admin-guide/mm/pagemap.html>.
    fn own_pages(&self, begin: usize, end: usize) -> io::Result<Vec<(usize, usize)>> {
        const PRESENT_OR_SWAPPED: u64 = 3 << 62;
        const OF_A_FILE: u64 = 1 << 61;
        let mut entries = vec![0; (end - begin) / PAGE * 8];
        self.page_map.read_exact_at(&mut entries, (begin / PAGE * 8) as u64)?;
        let mut rows: Vec<(usize, usize)> = Vec::new();
        for (index, entry) in entries.chunks_exact(8).enumerate() {
            let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
            if entry & PRESENT_OR_SWAPPED == 0 || entry & OF_A_FILE != 0 {
                continue;
            }
            let page = begin + index * PAGE;
            match rows.last_mut() {
                Some((_, last)) if *last == page => *last += PAGE,
                _ => rows.push((page, page + PAGE)),
            }
        }
        Ok(rows)
    }

    fn read(&self, begin: usize, end: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; end - begin];
        self.memory.read_exact_at(&mut bytes, begin as u64)?;
        Ok(bytes)
    }

    /// Where the kernel says that things are.
    fn layout(&self, stand: Stand) -> anyhow::Result<[u64; 11]> {
        let stat = fs::read_to_string(self.process.join("stat")).context("cannot read its stat")?;
        let (_, after_name) = stat.rsplit_once(')').context("its stat has no name")?;
        let words: Vec<&str> = after_name.split_whitespace().collect();
        // By the numbers of proc_pid_stat(5); the first word after the name is the third.
        let field =
            |number: usize| anyhow::Ok(words.get(number - 3).context("its stat is short")?.parse::<u64>()?);
        let [code, code_end, stack] = [field(26)?, field(27)?, field(28)?];
        let [data, data_end, heap] = [field(45)?, field(46)?, field(47)?];
        let [args, args_end, env, env_end] = [field(48)?, field(49)?, field(50)?, field(51)?];
        if code < 2 {
            bail!("the kernel does not say where its program is");
        }
        let heap_end = stand.end_of_data as u64;
        Ok([code, code_end, data, data_end, heap, heap_end, stack, args, args_end, env, env_end])
    }

    fn auxiliary(&self) -> anyhow::Result<Vec<u64>> {
        let bytes = fs::read(self.process.join("auxv")).context("cannot read its auxv")?;
        let words = bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
        let words: Vec<u64> = words.collect();
        if words.len() > AUXILIARY_WORDS {
            bail!("its auxv has {} words", words.len());
        }
        Ok(words)
    }
}
