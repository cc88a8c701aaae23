//! How many cores this process may keep busy: the smaller of its affinity mask and the quota of its
//! cgroup and those above it, in either version.
//!
//! Everything is read from files below a root, which is `/` but in tests.

use std::fs;
use std::path::{Path, PathBuf};

/// What a process may keep busy, and what says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Cores {
    /// Whole cores, at least one.
    pub count: usize,
    /// Cores in the affinity mask, where the system tells.
    pub affinity: Option<usize>,
    /// Cores' worth of time that the tightest cgroup gives, where one limits it.
    pub quota: Option<Quota>,
}

/// A limit of a cgroup.
#[derive(Debug, Clone, PartialEq)]
pub struct Quota {
    /// Cores' worth of time.
    pub cores: f64,
    /// The file that says so.
    pub file: PathBuf,
}

impl Cores {
    /// Reads what holds for this process. `root` is where `/proc` and the mounted cgroups are found.
    pub fn read(root: &Path) -> Self {
        let affinity = affinity(root);
        let quota = quota(root);
        let most = affinity.unwrap_or(usize::MAX);
        let count = match &quota {
            // Whole cores only: one that is held back for most of each period holds up a batch for as
            // long, and the others with it.
            Some(quota) => most.min(quota.cores as usize),
            None => most,
        };
        let unknown = affinity.is_none() && quota.is_none();
        Self {
            count: if unknown { 1 } else { count.max(1) },
            affinity,
            quota,
        }
    }

    /// Why it is so many, in a few words.
    pub fn reason(&self) -> String {
        let affinity = self
            .affinity
            .map(|cores| format!("the affinity mask allows {cores}"));
        let quota = self.quota.as_ref().map(|quota| {
            format!(
                "`{}` allows {}",
                quota.file.display(),
                (quota.cores * 100.0).round() / 100.0
            )
        });
        match (affinity, quota) {
            (Some(affinity), Some(quota)) => format!("{affinity}, {quota}"),
            (Some(affinity), None) => format!("{affinity}, no cgroup limits it"),
            (None, Some(quota)) => quota,
            (None, None) => "the system does not tell".to_owned(),
        }
    }
}

/// The number of processors in `Cpus_allowed_list`.
fn affinity(root: &Path) -> Option<usize> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    list.trim().split(',').map(range_length).sum()
}

/// How many numbers `3` or `0-7` is.
fn range_length(range: &str) -> Option<usize> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    Some(last.checked_sub(first)? + 1)
}

/// The tightest quota of all cgroups that this process is in.
fn quota(root: &Path) -> Option<Quota> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
    let mut tightest: Option<Quota> = None;
    for line in groups.lines() {
        // number:controllers:path, with neither number nor controllers in the second version.
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let version = match controllers {
            "" => Version::Two,
            list if list.split(',').any(|name| name == "cpu") => Version::One,
            _ => continue,
        };
        for mount in mounts.iter().filter(|mount| mount.version == version) {
            for directory in mount.directories(group) {
                let found = version.quota(root, &directory);
                let tighter = |new: &Quota| {
                    tightest
                        .as_ref()
                        .is_none_or(|known| new.cores < known.cores)
                };
                if let Some(new) = found.filter(tighter) {
                    tightest = Some(new);
                }
            }
        }
    }
    tightest
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The quota in `directory`, which is below `root`.
    fn quota(self, root: &Path, directory: &Path) -> Option<Quota> {
        let below = |file: &Path| {
            let relative = file.strip_prefix("/").unwrap_or(file);
            fs::read_to_string(root.join(relative)).ok()
        };
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| *n > 0.0);
        let (file, limit, period) = match self {
            Self::Two => {
                let file = directory.join("cpu.max");
                let text = below(&file)?;
                let (limit, period) = text.trim().split_once(' ')?;
                // `max` is no number, and no limit.
                (file, number(limit)?, number(period)?)
            }
            Self::One => {
                let file = directory.join("cpu.cfs_quota_us");
                let period = below(&directory.join("cpu.cfs_period_us"))?;
                // -1 is no limit.
                let limit = number(&below(&file)?)?;
                (file, limit, number(&period)?)
            }
        };
        Some(Quota {
            cores: limit / period,
            file,
        })
    }
}

/// Where cgroups are mounted.
#[derive(Debug, PartialEq)]
struct Mount {
    version: Version,
    /// The cgroup that is seen at `point`.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// Reads a line of `mountinfo`; `None` where it is of something else.
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        let version = match kind {
            "cgroup2" => Version::Two,
            "cgroup" if options.split(',').any(|option| option == "cpu") => Version::One,
            _ => return None,
        };
        let mut fields = before.split(' ').skip(3);
        Some(Self {
            version,
            root: fields.next()?.into(),
            point: fields.next()?.into(),
        })
    }

    /// The directories of `group` and of all above it that can be seen here.
    fn directories(&self, group: &str) -> Vec<PathBuf> {
        // What lies outside what is mounted cannot be seen; then its top is the best there is.
        let inside = Path::new(group).strip_prefix(&self.root).ok();
        let inside = inside
            .filter(|path| !path.starts_with(".."))
            .unwrap_or(Path::new(""));
        inside
            .ancestors()
            .map(|part| self.point.join(part))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "33 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      34 32 0:30 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n";

    /// A tree of files with these contents, and what is read from it.
    fn read(files: &[(&str, &str)]) -> Cores {
        let root = tempfile::tempdir().unwrap();
        for (file, content) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        Cores::read(root.path())
    }

    const EIGHT: (&str, &str) = (
        "proc/self/status",
        "Name:\tx\nCpus_allowed_list:\t0-3,6,8-10\n",
    );

    #[test]
    fn the_affinity_mask_alone() {
        let cores = read(&[EIGHT]);
        assert_eq!((cores.count, cores.affinity), (8, Some(8)));
        assert_eq!(
            cores.reason(),
            "the affinity mask allows 8, no cgroup limits it"
        );
        assert_eq!(read(&[]).count, 1);
        assert_eq!(
            read(&[("proc/self/status", "Cpus_allowed_list:\tall\n")]).count,
            1
        );
    }

    #[test]
    fn a_quota_of_the_second_version_and_of_what_is_above_it() {
        for (leaf, slice, expected) in [
            ("max 100000", "max 100000", 8),
            ("250000 100000", "max 100000", 2),
            ("max 100000", "150000 50000", 3),
            ("200000 100000", "100000 100000", 1),
            ("50000 100000", "max 100000", 1),
            ("1600000 100000", "max 100000", 8),
            ("nonsense", "", 8),
        ] {
            let cores = read(&[
                EIGHT,
                ("proc/self/cgroup", "0::/a.slice/b.service\n"),
                ("proc/self/mountinfo", V2),
                ("sys/fs/cgroup/a.slice/cpu.max", slice),
                ("sys/fs/cgroup/a.slice/b.service/cpu.max", leaf),
            ]);
            assert_eq!(cores.count, expected, "{leaf} in {slice}: {cores:?}");
        }
    }

    #[test]
    fn a_quota_of_the_first_version() {
        let tree = |quota| {
            read(&[
                EIGHT,
                (
                    "proc/self/cgroup",
                    "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n",
                ),
                ("proc/self/mountinfo", V1),
                ("sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us", quota),
                (
                    "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us",
                    "100000\n",
                ),
            ])
        };
        assert_eq!(tree("-1\n").count, 8);
        let cores = tree("350000\n");
        assert_eq!(cores.count, 3);
        assert_eq!(
            cores.reason(),
            "the affinity mask allows 8, \
             `/sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us` allows 3.5"
        );
    }

    /// In a container the mount shows the container's own group at its top.
    #[test]
    fn a_container_sees_its_own_group_as_the_top() {
        let first = V1.replace("0:29 / ", "0:29 /docker/x ");
        let cores = read(&[
            EIGHT,
            ("proc/self/cgroup", "4:cpu,cpuacct:/docker/x\n"),
            ("proc/self/mountinfo", &first),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(cores.count, 2);
        for group in ["0::/\n", "0::/../../system.slice\n"] {
            let cores = read(&[
                EIGHT,
                ("proc/self/cgroup", group),
                ("proc/self/mountinfo", V2),
                ("sys/fs/cgroup/cpu.max", "400000 100000\n"),
            ]);
            assert_eq!(cores.count, 4, "{group}");
        }
    }

    #[test]
    fn this_process_may_use_something() {
        let cores = Cores::read(Path::new("/"));
        assert!(cores.count >= 1);
        let told = std::thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(cores.count, told, "{}", cores.reason());
    }
}
