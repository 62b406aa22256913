package cgroups

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHierarchiesOfVersionOneAreEachFound(t *testing.T) {
	lines := "9:name=systemd:/\n4:memory:/ci/job\n1:cpu,cpuacct:/\n0::/\n"
	found, err := parse(strings.NewReader(lines), false, "bed")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"systemd":     "/sys/fs/cgroup/systemd/bed",
		"memory":      "/sys/fs/cgroup/memory/ci/job/bed",
		"cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct/bed",
	}
	if len(found) != len(want) {
		t.Errorf("found %v", found)
	}
	for _, c := range found {
		if want[c.Mount] != c.Path {
			t.Errorf("%s at %s", c.Mount, c.Path)
		}
		if c.Mount == "systemd" && c.Options != "none,name=systemd" {
			t.Errorf("options %s", c.Options)
		}
	}
}

func TestVersionTwoIsOneHierarchyUsedFromItsTop(t *testing.T) {
	found, err := parse(strings.NewReader("0::/user.slice/x\n"), true, "bed")
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Path != "/sys/fs/cgroup/bed" || found[0].Mount != "" {
		t.Errorf("found %v", found)
	}
}

func TestGroupsAreRemovedDeepestFirst(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "bed", "worker-1", "kubepods", "pod1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := remove(filepath.Join(dir, "bed", "worker-1"), true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bed", "worker-1")); err != nil {
		t.Error("the group itself should have stayed")
	}
	if err := remove(filepath.Join(dir, "bed"), false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bed")); err == nil {
		t.Error("the group is still there")
	}
}
