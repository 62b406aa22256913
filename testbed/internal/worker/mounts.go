package worker

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"larder/testbed/internal/cgroups"
	"larder/testbed/internal/config"
	"larder/testbed/internal/plan"
)

// disks maps directories of a worker's disk to where the worker sees them.
var disks = []struct{ part, at string }{
	{"kubelet", "/var/lib/kubelet"},
	{"containerd", "/var/lib/containerd"},
	{"cni", "/var/lib/cni"},
	{"log", "/var/log"},
	{"volumes", plan.VolumesInside},
	{"etc-cni", "/etc/cni/net.d"},
	{"etc-containerd", "/etc/containerd"},
}

// The kubelet insists on these values and would set them for the whole machine; a file with the value in front of the
// real one satisfies it.
var sysctls = map[string]string{
	"/proc/sys/vm/overcommit_memory":      "1\n",
	"/proc/sys/vm/panic_on_oom":           "0\n",
	"/proc/sys/kernel/panic":              "10\n",
	"/proc/sys/kernel/panic_on_oops":      "1\n",
	"/proc/sys/kernel/keys/root_maxkeys":  "1000000\n",
	"/proc/sys/kernel/keys/root_maxbytes": "25000000\n",
}

type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

func (m mount) do() error {
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil {
		return fmt.Errorf("mounting %s (%s) on %s: %w", m.source, m.kind, m.target, err)
	}
	return nil
}

// view builds the worker's view of the file system, in its own mount namespace.
func view(boot Boot) error {
	const tidy = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// Nothing that happens here may reach the machine.
	if err := (mount{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""}).do(); err != nil {
		return err
	}
	// Mount points have to be made in /etc and /var/lib; a layer of the worker's own keeps them off the machine's disk.
	if err := overlays(boot); err != nil {
		return err
	}
	for _, m := range []mount{
		{"proc", "/proc", "proc", tidy, ""},
		// A fresh one shows the worker's own network interfaces.
		{"sysfs", "/sys", "sysfs", tidy, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := groups(boot.Spec); err != nil {
		return err
	}
	for _, d := range disks {
		source := boot.Spec.Disk(boot.Worker.Name, d.part)
		for _, dir := range []string{source, d.at} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("making %s: %w", dir, err)
			}
		}
		if err := (mount{source, d.at, "", unix.MS_BIND, ""}).do(); err != nil {
			return err
		}
	}
	if err := fakes(boot.Spec); err != nil {
		return err
	}
	// The kubelet wants mounts in pods' volumes to propagate.
	return mount{"", "/", "", unix.MS_REC | unix.MS_SHARED, ""}.do()
}

// overlays puts a layer of the worker's own over the machine's directories in which mount points have to be made.
func overlays(boot Boot) error {
	for _, dir := range []string{"/etc", "/var/lib"} {
		base := boot.Spec.Disk(boot.Worker.Name, "over"+filepath.Base(dir))
		upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return fmt.Errorf("making %s: %w", d, err)
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
		if err := (mount{"overlay", dir, "overlay", 0, options}).do(); err != nil {
			return err
		}
	}
	return nil
}

// groups mounts the hierarchies of control groups, whose root is now the worker's group.
func groups(spec plan.Spec) error {
	const tidy = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, c := range spec.Cgroups {
		if c.Mount == "" {
			if err := (mount{"cgroup2", cgroups.Root, "cgroup2", tidy, ""}).do(); err != nil {
				return err
			}
			return leaf(cgroups.Root)
		}
	}
	if err := (mount{"tmpfs", cgroups.Root, "tmpfs", tidy, "mode=755"}).do(); err != nil {
		return err
	}
	for _, c := range spec.Cgroups {
		dir := filepath.Join(cgroups.Root, c.Mount)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
		if err := (mount{"cgroup", dir, "cgroup", tidy, c.Options}).do(); err != nil {
			return err
		}
	}
	return nil
}

// leaf moves this process, the only one yet, out of the worker's root group: with version 2 a group with processes
// cannot pass controllers on to the pods' groups.
func leaf(root string) error {
	dir := filepath.Join(root, "system")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the control group %s: %w", dir, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return fmt.Errorf("moving into the control group %s: %w", dir, err)
	}
	return cgroups.EnableAll(root)
}

// fakes puts files in front of those of the machine that must not be written or followed.
func fakes(spec plan.Spec) error {
	if err := os.MkdirAll("/run/testbed", 0o755); err != nil {
		return fmt.Errorf("making /run/testbed: %w", err)
	}
	for at, value := range sysctls {
		if _, err := os.Stat(at); err != nil {
			continue
		}
		file := filepath.Join("/run/testbed", filepath.Base(at))
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", file, err)
		}
		if err := (mount{file, at, "", unix.MS_BIND, ""}).do(); err != nil {
			return err
		}
	}
	// Removed first: a link into /run would lead nowhere by now.
	_ = os.Remove("/etc/resolv.conf")
	if err := os.WriteFile("/etc/resolv.conf", nil, 0o644); err != nil {
		return fmt.Errorf("emptying the worker's resolv.conf: %w", err)
	}
	return nil
}

// files writes what the worker's programs read.
func files(boot Boot, machine int64) error {
	for path, content := range map[string]string{
		"/etc/cni/net.d/10-testbed.conflist":                config.CNI(boot.Worker),
		"/etc/containerd/config.toml":                       config.Containerd(),
		"/etc/containerd/certs.d/_default/hosts.toml":       config.Hosts(),
		boot.Spec.Disk(boot.Worker.Name, "kubelet.yaml"):    config.Kubelet(boot.Spec, boot.Worker, machine),
		boot.Spec.Disk(boot.Worker.Name, "kube-proxy.yaml"): config.KubeProxy(boot.Spec, boot.Worker),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("making %s: %w", filepath.Dir(path), err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	return nil
}
