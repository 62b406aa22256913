package worker

import (
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"larder/testbed/internal/config"
	"larder/testbed/internal/control"
	"larder/testbed/internal/jsonfile"
	"larder/testbed/internal/network"
	"larder/testbed/internal/reap"
	"larder/testbed/internal/units"
)

// containerdWait is how long containerd may take to answer on its socket; it takes a tenth of a second at rest.
const containerdWait = 60 * time.Second

const containerdSocket = "/run/containerd/containerd.sock"

// RunStage2 boots the worker and answers the supervisor until it loses its power. As PID 1 its end is the end of every
// process of the worker.
func RunStage2(file string) error {
	syscall.CloseOnExec(ControlFD)
	boot, err := jsonfile.Read[Boot](file)
	if err != nil {
		return err
	}
	log.SetPrefix(boot.Worker.Name + ": ")
	if err := unix.Sethostname([]byte(boot.Worker.Name)); err != nil {
		return fmt.Errorf("setting the host's name: %w", err)
	}
	if err := view(boot); err != nil {
		return err
	}
	if err := network.Inside(boot.Worker); err != nil {
		return err
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("asking for the machine's memory: %w", err)
	}
	if err := files(boot, int64(info.Totalram)*int64(info.Unit)); err != nil {
		return err
	}
	reaper := reap.New()
	manager := units.New(reaper)
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the own program: %w", err)
	}
	spec, w := boot.Spec, boot.Worker
	logs := func(unit string) string { return spec.Logs(w.Name + "-" + unit + ".log") }
	manager.Add(units.Unit{
		Name: "containerd", Path: "containerd", Log: logs("containerd"),
		Args: []string{"containerd", "--config", "/etc/containerd/config.toml", "--log-level", "info"},
	})
	manager.Add(units.Unit{
		Name: "kubelet", Path: self, Log: logs("kubelet"),
		Args:   append([]string{"testbed", "kubelet"}, config.KubeletArgs(spec, w)...),
		Before: waitForContainerd,
	})
	manager.Add(units.Unit{
		Name: "kube-proxy", Path: self, Log: logs("kube-proxy"),
		Args: []string{"testbed", "kube-proxy", "--config=" + spec.Disk(w.Name, "kube-proxy.yaml")},
	})
	for _, name := range []string{"containerd", "kube-proxy", "kubelet"} {
		if err := manager.Start(name); err != nil {
			return err
		}
	}
	requests, err := control.Inherited(ControlFD, "control")
	if err != nil {
		return err
	}
	log.Print("powered on")
	return control.Serve(requests, func(r control.Request) control.Reply { return handle(manager, reaper, r) })
}

// handle carries one request out. Several run at a time: one that waits for a program that hangs may not hold up the one
// that lets it go on.
func handle(manager *units.Manager, reaper *reap.Reaper, r control.Request) control.Reply {
	var err error
	var reply control.Reply
	switch r.Op {
	case control.OpStart:
		err = manager.Start(r.Component)
	case control.OpKill:
		err = manager.Kill(r.Component)
	case control.OpPause, control.OpResume:
		err = manager.Pause(r.Component, r.Op == control.OpPause)
	case control.OpStatus:
		reply.Units = manager.Status()
	case control.OpImport:
		if err = waitForContainerd(); err == nil {
			_, err = reaper.Run(reap.Command{
				Path: "ctr",
				Args: []string{"ctr", "--address", containerdSocket, "--namespace", "k8s.io", "images", "import", r.Path},
			}, "")
		}
		if err != nil {
			err = fmt.Errorf("importing %s: %w", filepath.Base(r.Path), err)
		}
	default:
		err = fmt.Errorf("no request is called %q", r.Op)
	}
	if err != nil {
		reply.Error = err.Error()
	}
	return reply
}

// waitForContainerd returns when containerd takes connections.
func waitForContainerd() error {
	for deadline := time.Now().Add(containerdWait); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("unix", containerdSocket)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waiting for containerd: %w", err)
		}
	}
}
