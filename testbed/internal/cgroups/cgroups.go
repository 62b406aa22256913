// Package cgroups makes the control groups of workers and removes them again: with version 1 in every hierarchy, below
// the group that the caller lives in; with version 2 at the top of the one hierarchy.
package cgroups

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"larder/testbed/internal/plan"
)

// Root is where hierarchies of control groups are mounted, on the machine and in a worker.
const Root = "/sys/fs/cgroup"

// Unified says whether the machine has version 2 alone.
func Unified() bool {
	var stat unix.Statfs_t
	return unix.Statfs(Root, &stat) == nil && stat.Type == unix.CGROUP2_SUPER_MAGIC
}

// Find lists the hierarchies of the machine, with a group called name below the caller's own in each.
func Find(name string) ([]plan.Cgroup, error) {
	file, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("reading the own control groups: %w", err)
	}
	defer file.Close()
	found, err := parse(file, Unified(), name)
	if err != nil {
		return nil, err
	}
	kept := found[:0]
	for _, c := range found {
		if _, err := os.Stat(filepath.Dir(c.Path)); err == nil {
			kept = append(kept, c)
		}
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("no hierarchy of control groups is mounted below %s", Root)
	}
	return kept, nil
}

// parse reads lines like `4:memory:/a/b`, `9:name=systemd:/` and, for version 2, `0::/a/b`.
func parse(lines io.Reader, unified bool, name string) ([]plan.Cgroup, error) {
	var found []plan.Cgroup
	scanner := bufio.NewScanner(lines)
	for scanner.Scan() {
		parts := strings.SplitN(scanner.Text(), ":", 3)
		if len(parts) != 3 {
			return nil, fmt.Errorf("cannot read %q as a control group", scanner.Text())
		}
		controllers, path := parts[1], parts[2]
		switch {
		case unified && controllers == "":
			// At the top, not below the own group: there a group with processes may not pass controllers on.
			found = append(found, plan.Cgroup{Path: filepath.Join(Root, name)})
		case !unified && controllers != "":
			mount := strings.TrimPrefix(controllers, "name=")
			options := controllers
			if mount != controllers {
				options = "none," + controllers
			}
			found = append(found, plan.Cgroup{Mount: mount, Options: options, Path: filepath.Join(Root, mount, path, name)})
		}
	}
	return found, scanner.Err()
}

// Move puts a process into the group of a worker, which it makes where it is not there.
func Move(groups []plan.Cgroup, worker string, pid int) error {
	for _, c := range groups {
		dir := filepath.Join(c.Path, worker)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making the control group %s: %w", dir, err)
		}
		if slices.Contains(strings.Split(c.Mount, ","), "cpuset") {
			// A new group of this controller has no processors and no memory, and takes no process.
			for _, level := range []string{c.Path, dir} {
				if err := inherit(level); err != nil {
					return err
				}
			}
		}
		if err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("moving process %d into the control group %s: %w", pid, dir, err)
		}
	}
	return nil
}

func inherit(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return fmt.Errorf("reading what %s may use: %w", dir, err)
		}
		if err := write(filepath.Join(dir, file), strings.TrimSpace(string(value))); err != nil {
			return fmt.Errorf("saying what %s may use: %w", dir, err)
		}
	}
	return nil
}

// Delegate lets groups below the test bed's own limit resources. In version 2 a group that does so may hold no
// process, so this is for the test bed's group, in which none ever is. In version 1 there is nothing to do.
func Delegate(groups []plan.Cgroup) error {
	for _, c := range groups {
		if err := os.MkdirAll(c.Path, 0o755); err != nil {
			return fmt.Errorf("making the control group %s: %w", c.Path, err)
		}
		if c.Mount != "" {
			continue
		}
		for _, dir := range []string{filepath.Dir(c.Path), c.Path} {
			if err := EnableAll(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// EnableAll passes every controller of a version 2 group on to the groups below it.
func EnableAll(dir string) error {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("reading the controllers of %s: %w", dir, err)
	}
	for _, controller := range strings.Fields(string(available)) {
		if err := write(filepath.Join(dir, "cgroup.subtree_control"), "+"+controller); err != nil {
			return fmt.Errorf("passing on %s in %s: %w", controller, dir, err)
		}
	}
	return nil
}

func write(path, value string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteString(value)
	return err
}

// Clear removes the groups below a worker's (name) or the test bed's own group and all below it (empty name). Groups
// whose processes are still ending are tried again for a few seconds.
func Clear(groups []plan.Cgroup, name string) error {
	deadline := time.Now().Add(5 * time.Second)
	var failed error
	for _, c := range groups {
		for {
			failed = remove(filepath.Join(c.Path, name), name != "")
			if failed == nil || time.Now().After(deadline) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if failed != nil {
			return fmt.Errorf("removing the control group %s: %w", c.Path, failed)
		}
	}
	return nil
}

// remove deletes the deepest first: a group with groups below it cannot go.
func remove(dir string, keep bool) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if entry.IsDir() && !(keep && path == dir) {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Reverse(dirs)
	for _, d := range dirs {
		if err := syscall.Rmdir(d); err != nil && !errors.Is(err, syscall.ENOENT) {
			return &fs.PathError{Op: "rmdir", Path: d, Err: err}
		}
	}
	return nil
}
