//! Secrets and configs as files in memory, one folder per task, which its container gets as read-only bind mounts. They are there
//! as long as the task may start; a container that runs keeps what it has.

use super::EngineError;
use crate::durable;
use crate::model::container_spec::FileTarget;
use crate::model::payload::GOLANG;
use crate::model::template::{ContentFunction, TemplateContext, expand};
use crate::model::{Payload, PayloadId, Secret, Task, TaskId};
use crate::sync::lock;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::fs::{Gid, Mode, Uid};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Where secrets without an absolute path appear.
const SECRETS: &str = "/run/secrets";

/// A file that a container gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileMount {
    /// Path on the node.
    pub source: PathBuf,
    /// Path in the container.
    pub target: String,
}

/// What a task's files are written from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FilePlan {
    pub task: Task,
    pub payloads: BTreeMap<PayloadId, Arc<Payload>>,
}

/// A secret or config that a task names.
struct Wanted<'a> {
    id: PayloadId,
    name: &'a str,
    file: &'a FileTarget,
}

fn wanted(task: &Task) -> Vec<Wanted<'_>> {
    let spec = &task.spec.container_spec;
    let secrets = spec.secrets.iter().map(|s| (PayloadId::Secret(s.id.clone()), &s.name, &s.file));
    let configs = spec.configs.iter().map(|c| (PayloadId::Config(c.id.clone()), &c.name, &c.file));
    let all = secrets.chain(configs);
    all.filter_map(|(id, name, file)| Some(Wanted { id, name, file: file.as_ref()? })).collect()
}

/// The name of the first secret or config that the task needs and that there is not, with its kind.
#[must_use]
pub fn missing(task: &Task, payloads: &BTreeMap<PayloadId, Arc<Payload>>) -> Option<String> {
    let absent = wanted(task).into_iter().find(|wanted| !payloads.contains_key(&wanted.id))?;
    let kind = if matches!(absent.id, PayloadId::Secret(_)) { "secret" } else { "config" };
    Some(format!("{kind} {}", absent.name))
}

/// Where the files of a task are, and where its container has them.
#[must_use]
pub fn file_mounts(dir: &Path, task: &Task) -> Vec<FileMount> {
    let mount = |(number, wanted): (usize, Wanted<'_>)| {
        let name = &wanted.file.name;
        let target = match wanted.id {
            _ if name.starts_with('/') => name.clone(),
            PayloadId::Secret(_) => format!("{SECRETS}/{name}"),
            PayloadId::Config(_) => format!("/{name}"),
        };
        FileMount { source: file_path(dir, &task.id, number), target }
    };
    wanted(task).into_iter().enumerate().map(mount).collect()
}

fn file_path(dir: &Path, task: &TaskId, number: usize) -> PathBuf {
    dir.join(task.as_str()).join(number.to_string())
}

/// The files of this node's tasks.
#[derive(Debug)]
pub struct TaskFiles {
    dir: PathBuf,
    /// Tasks whose files may be there. Held while files are written or removed.
    kept: Mutex<BTreeSet<TaskId>>,
}

impl TaskFiles {
    /// Below this directory, which is made to be in memory when the first file is written.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, kept: Mutex::default() }
    }

    /// From now on only these tasks may have files; those of others are removed by [`Self::sweep`].
    pub fn keep(&self, tasks: BTreeSet<TaskId>) {
        *lock(&self.kept) = tasks;
    }

    /// Removes the files of tasks that are not kept. Blocks.
    ///
    /// # Errors
    /// A folder cannot be read or removed.
    pub fn sweep(&self) -> io::Result<()> {
        let kept = lock(&self.kept);
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(|name| kept.contains(&TaskId::from(name))) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes the files of a task, again if they are there. Blocks.
    ///
    /// # Errors
    /// [`EngineError::Refused`] for a template that cannot be expanded, [`EngineError::Busy`] if the files cannot be written now.
    pub fn write(&self, plan: &FilePlan, context: &TemplateContext) -> Result<(), EngineError> {
        let kept = lock(&self.kept);
        if !kept.contains(&plan.task.id) {
            return Err(EngineError::Busy("the task is no longer wanted".to_owned()));
        }
        let all = wanted(&plan.task);
        for (number, wanted) in all.iter().enumerate() {
            let content = content(wanted, &all, plan, context)?;
            self.write_file(&file_path(&self.dir, &plan.task.id, number), wanted.file, content.expose()).map_err(|error| {
                EngineError::Busy(format!(
                    "{} {} cannot be written below {}: {error}",
                    wanted.id,
                    wanted.name,
                    self.dir.display()
                ))
            })?;
        }
        Ok(())
    }

    fn write_file(&self, path: &Path, target: &FileTarget, content: &[u8]) -> io::Result<()> {
        make_dir(&self.dir)?;
        if !durable::is_in_memory(&self.dir)? {
            let flags = rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NOEXEC;
            rustix::mount::mount("tmpfs", &self.dir, "tmpfs", flags, c"mode=0700")?;
        }
        if let Some(folder) = path.parent() {
            make_dir(folder)?;
        }
        crate::durable::ignore_missing(std::fs::remove_file(path))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        // The API has checked the numbers.
        let number = |text: &str| text.parse().unwrap_or(0);
        rustix::fs::fchown(&file, Some(Uid::from_raw(number(&target.uid))), Some(Gid::from_raw(number(&target.gid))))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(target.mode & 0o777))?;
        Ok(())
    }
}

/// Removes the files of all tasks, their directory and what is mounted there. Blocks.
///
/// # Errors
/// It is in use, or cannot be removed.
pub fn remove_all(dir: &Path) -> io::Result<()> {
    // Not a mount point where the directory was in memory before.
    match rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    crate::durable::ignore_missing(std::fs::remove_dir_all(dir))
}

/// Only root may look into it.
fn make_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// The content of a file: expanded if it is a template.
fn content(
    wanted: &Wanted<'_>,
    all: &[Wanted<'_>],
    plan: &FilePlan,
    context: &TemplateContext,
) -> Result<Secret<Vec<u8>>, EngineError> {
    let refused = |why: &dyn std::fmt::Display| EngineError::Refused(format!("{} cannot be made: {why}", describe(wanted)));
    let Some(payload) = plan.payloads.get(&wanted.id) else {
        return Err(EngineError::Busy(format!("{} is not there yet", describe(wanted))));
    };
    let bytes = decoded(payload).ok_or_else(|| refused(&"its content is damaged"))?;
    match payload.templating.as_deref() {
        None => return Ok(bytes),
        Some(GOLANG) => {}
        Some(other) => return Err(refused(&format_args!("unrecognized template type: {other}"))),
    }
    let text = std::str::from_utf8(bytes.expose()).map_err(|_| refused(&"it is a template, and no UTF-8 text"))?;
    let functions = |function: ContentFunction, name: &str| call(function, name, all, plan);
    expand(text, context, Some(&functions)).map(|text| Secret::new(text.into_bytes())).map_err(|error| refused(&error))
}

fn call(function: ContentFunction, name: &str, all: &[Wanted<'_>], plan: &FilePlan) -> Result<String, String> {
    let (kind, is_secret) = match function {
        ContentFunction::Env => {
            let env = plan.task.spec.container_spec.env.iter().rev();
            let value = env.filter_map(|entry| entry.split_once('=')).find(|(key, _)| *key == name);
            return Ok(value.map(|(_, value)| value.to_owned()).unwrap_or_default());
        }
        ContentFunction::Secret => ("secret", true),
        ContentFunction::Config => ("config", false),
    };
    let is_named = |w: &&Wanted<'_>| matches!(w.id, PayloadId::Secret(_)) == is_secret && w.file.name == name;
    let found = all.iter().find(is_named).ok_or_else(|| format!("{kind} target {name} not found"))?;
    let bytes = plan.payloads.get(&found.id).and_then(|payload| decoded(payload));
    let bytes = bytes.ok_or_else(|| format!("{kind} {name} is not there"))?;
    String::from_utf8(bytes.expose().clone()).map_err(|_| format!("{kind} {name} is no UTF-8 text"))
}

fn describe(wanted: &Wanted<'_>) -> String {
    let kind = if matches!(wanted.id, PayloadId::Secret(_)) { "secret" } else { "config" };
    format!("{kind} {}", wanted.name)
}

fn decoded(payload: &Payload) -> Option<Secret<Vec<u8>>> {
    STANDARD.decode(payload.data.expose()).ok().map(Secret::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{fixture, node::NodeDescription};
    use serde_json::{Value, json};
    use std::os::unix::fs::MetadataExt as _;

    /// Below a file system in memory, so that nothing is mounted.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = PathBuf::from(format!("/dev/shm/skep-files-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn task(id: &str, container: Value) -> Task {
        let mut task = fixture::task_with_resolvers(id, "web", "n1", &[]);
        Arc::make_mut(&mut task.spec).container_spec = serde_json::from_value(container).expect("a spec");
        task
    }

    fn secret(id: &str, target: &str) -> Value {
        json!({"SecretID": id, "SecretName": format!("name-{id}"), "File": {"Name": target, "UID": "7", "GID": "", "Mode": 0o640}})
    }

    fn payloads(all: &[(&str, &[u8], Option<&str>)]) -> BTreeMap<PayloadId, Arc<Payload>> {
        let payload = |(id, content, templating): &(&str, &[u8], Option<&str>)| {
            let data = STANDARD.encode(content).into();
            (PayloadId::Secret((*id).into()), Arc::new(Payload { data, templating: templating.map(str::to_owned) }))
        };
        all.iter().map(payload).collect()
    }

    fn write(files: &TaskFiles, plan: &FilePlan) -> Result<(), EngineError> {
        let node = NodeDescription { hostname: "host1".to_owned(), ..NodeDescription::default() };
        files.write(plan, &TemplateContext::of(&plan.task, &"n1".into(), &node))
    }

    #[test]
    fn files_are_written_with_owner_and_mode_and_removed_with_their_task() {
        let dir = Dir::new("life");
        let files = TaskFiles::new(dir.0.clone());
        let task = task("t1", json!({"Secrets": [secret("a", "s"), secret("b", "/etc/t")], "Env": ["X=1", "X=2"]}));
        let template = "{{.Node.Hostname}} {{env \"X\"}} {{secret \"s\"}}".as_bytes();
        let all = payloads(&[("a", b"\xff\x00", None), ("b", template, None)]);
        let plan = FilePlan { task: task.clone(), payloads: all };
        assert!(matches!(write(&files, &plan), Err(EngineError::Busy(_))), "not kept: its files would stay");
        files.keep(["t1".into(), "t2".into()].into());
        write(&files, &plan).expect("written");
        let mounts = file_mounts(&dir.0, &task);
        assert_eq!(mounts.iter().map(|m| m.target.as_str()).collect::<Vec<_>>(), ["/run/secrets/s", "/etc/t"]);
        assert_eq!(std::fs::read(&mounts[0].source).expect("written"), b"\xff\x00");
        assert_eq!(std::fs::read(&mounts[1].source).expect("written"), template, "no template");
        let found = std::fs::metadata(&mounts[0].source).expect("written");
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (7, 0, 0o640));
        assert_eq!(std::fs::metadata(&dir.0).expect("made").mode() & 0o7777, 0o700);
        write(&files, &plan).expect("again");

        files.sweep().expect("swept");
        assert!(mounts[0].source.exists());
        files.keep(BTreeSet::new());
        files.sweep().expect("swept");
        assert_eq!(std::fs::read_dir(&dir.0).expect("there").count(), 0);
    }

    #[test]
    fn templates_are_expanded_and_what_cannot_be_is_refused_by_name() {
        let dir = Dir::new("templates");
        let files = TaskFiles::new(dir.0.clone());
        files.keep(["t1".into()].into());
        let task = task("t1", json!({"Secrets": [secret("a", "s"), secret("b", "t")], "Env": ["X=1", "X=2"]}));
        let rendered = |content: &[u8], templating: &str, other: &[u8]| {
            let all = payloads(&[("a", other, None), ("b", content, Some(templating))]);
            write(&files, &FilePlan { task: task.clone(), payloads: all })?;
            Ok(String::from_utf8(std::fs::read(file_path(&dir.0, &"t1".into(), 1)).expect("written")).expect("text"))
        };
        let template = "{{.Node.Hostname}} {{.Task.Slot}} {{env \"X\"}}{{env \"Y\"}} {{secret \"s\"}}".as_bytes();
        assert_eq!(rendered(template, "golang", b"raw {{.}}"), Ok("host1 1 2 raw {{.}}".to_owned()));
        for (content, templating, other, words) in [
            (&b"{{secret \"no\"}}"[..], "golang", &b""[..], "secret target no not found"),
            (b"{{config \"s\"}}", "golang", b"", "config target s not found"),
            (b"{{secret \"s\"}}", "golang", b"\xff", "no UTF-8 text"),
            (b"\xff", "golang", b"", "no UTF-8 text"),
            (b"x", "nosuch", b"", "unrecognized template type: nosuch"),
            (b"{{.Nope}}", "golang", b"", "can't evaluate field Nope"),
        ] {
            let Err(EngineError::Refused(why)) = rendered(content, templating, other) else { panic!("{words}") };
            assert!(why.starts_with("secret name-b cannot be made: ") && why.contains(words), "{why}");
        }
    }
}
