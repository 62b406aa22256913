// Package supervisor is PID 1 of the test bed's own namespaces: it runs the control plane and the workers, and its end is
// the end of every process of the test bed.
package supervisor

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"larder/testbed/internal/addons"
	"larder/testbed/internal/cgroups"
	"larder/testbed/internal/config"
	"larder/testbed/internal/control"
	"larder/testbed/internal/images"
	"larder/testbed/internal/jsonfile"
	"larder/testbed/internal/netpol"
	"larder/testbed/internal/network"
	"larder/testbed/internal/pki"
	"larder/testbed/internal/plan"
	"larder/testbed/internal/reap"
	"larder/testbed/internal/units"
)

// Stage is the name of this role as the binary's first argument.
const Stage = "supervisor"

// Descriptors that the supervisor is started with. Both sockets were made in the machine's own network namespace, and
// stay there.
const (
	// APIFD listens on the machine's loopback for clients of the API server.
	APIFD = 3
	// ControlFD listens on the control socket.
	ControlFD = 4
)

// Supervisor is the running test bed.
type Supervisor struct {
	spec     plan.Spec
	self     string
	reaper   *reap.Reaper
	control  *units.Manager
	registry *images.Registry
	client   kubernetes.Interface
	policies *netpol.Enforcer
	lb       addons.Trigger
	netpol   addons.Trigger

	routes  sync.Mutex
	mu      sync.Mutex
	workers map[string]*workerState
}

// Run serves until it is told to stop by SIGTERM.
func Run(file string) error {
	for _, fd := range []int{APIFD, ControlFD} {
		syscall.CloseOnExec(fd)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	spec, err := jsonfile.Read[plan.Spec](file)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the own program: %w", err)
	}
	if err := view(spec); err != nil {
		return err
	}
	if err := network.Control(); err != nil {
		return err
	}
	if err := cgroups.Delegate(spec.Cgroups); err != nil {
		return err
	}
	if err := credentials(spec); err != nil {
		return err
	}
	reaper := reap.New()
	s := &Supervisor{
		spec: spec, self: self, reaper: reaper, control: units.New(reaper),
		lb: addons.NewTrigger(), netpol: addons.NewTrigger(), workers: map[string]*workerState{},
	}
	for _, w := range spec.Workers {
		s.workers[w.Name] = &workerState{Worker: w, wanted: true}
	}
	if s.client, err = client(spec); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	failed := make(chan error, 8)
	background := func(what string, f func() error) {
		go func() {
			if err := f(); err != nil {
				failed <- fmt.Errorf("%s: %w", what, err)
			}
		}()
	}
	if err := s.startControlPlane(); err != nil {
		return err
	}
	forwarded, err := control.Inherited(APIFD, "api")
	if err != nil {
		return err
	}
	commands, err := control.Inherited(ControlFD, "control")
	if err != nil {
		return err
	}
	background("forwarding to the API server", func() error { return forward(forwarded) })
	background("answering commands", func() error { return control.Serve(commands, s.handle) })
	// Before the first worker: it pulls the image of its pods' namespaces from there.
	background("serving images", s.startRegistry(ctx))
	background("adding what a cloud would", func() error { return s.startAddons(ctx) })
	for _, w := range spec.Workers {
		background("powering "+w.Name+" on", func() error { return s.powerOn(w.Name) })
	}
	select {
	case <-stop:
		return nil
	case err := <-failed:
		return err
	}
}

// view gives the control plane its own mounts. Etcd's data lie in memory: a test bed does not outlive its processes.
func view(spec plan.Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	for _, dir := range []string{"etcd", "logs", "pki", "config", "workers", "incoming"} {
		if err := os.MkdirAll(filepath.Join(spec.Dir, dir), 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
	}
	if err := unix.Mount("tmpfs", filepath.Join(spec.Dir, "etcd"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700"); err != nil {
		return fmt.Errorf("mounting memory for etcd: %w", err)
	}
	return nil
}

// credentials writes all keys, certificates and kubeconfigs.
func credentials(spec plan.Spec) error {
	authority, err := pki.NewAuthority(spec.PKI(""))
	if err != nil {
		return err
	}
	for _, r := range config.Certificates(spec) {
		if err := authority.Issue(r); err != nil {
			return err
		}
	}
	if err := authority.IssueKeyPair("sa"); err != nil {
		return err
	}
	inside := fmt.Sprintf("https://%s:%d", plan.ControlIP, plan.APIPort)
	files := map[string][2]string{
		spec.Kubeconfig():                            {"admin", fmt.Sprintf("https://127.0.0.1:%d", spec.APIPort)},
		spec.Config("admin.kubeconfig"):              {"admin", inside},
		spec.Config("controller-manager.kubeconfig"): {"controller-manager", inside},
		spec.Config("scheduler.kubeconfig"):          {"scheduler", inside},
		spec.Config("kube-proxy.kubeconfig"):         {"kube-proxy", inside},
	}
	for _, w := range spec.Workers {
		files[spec.Config(w.Name+".kubeconfig")] = [2]string{w.Name, inside}
	}
	for path, who := range files {
		var c config.Credentials
		for file, into := range map[string]*[]byte{"ca.crt": &c.CA, who[0] + ".crt": &c.Cert, who[0] + ".key": &c.Key} {
			if *into, err = os.ReadFile(spec.PKI(file)); err != nil {
				return fmt.Errorf("reading a credential: %w", err)
			}
		}
		if err := jsonfile.Replace(path, []byte(config.Kubeconfig(who[1], c))); err != nil {
			return err
		}
	}
	if err := giveToCaller(spec.Kubeconfig()); err != nil {
		return err
	}
	if err := os.WriteFile(spec.Config("audit.yaml"), []byte(config.AuditPolicy), 0o644); err != nil {
		return fmt.Errorf("writing what is audited: %w", err)
	}
	if err := os.WriteFile(spec.Config("resolv.conf"), nil, 0o644); err != nil {
		return fmt.Errorf("writing the pods' upper resolv.conf: %w", err)
	}
	return nil
}

// giveToCaller hands a file to the user who called by way of sudo: tests need not be root.
func giveToCaller(path string) error {
	uid, err1 := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, err2 := strconv.Atoi(os.Getenv("SUDO_GID"))
	if err1 != nil || err2 != nil {
		return nil
	}
	if err := os.Chown(path, uid, gid); err != nil {
		return fmt.Errorf("giving %s to its user: %w", path, err)
	}
	return nil
}

func client(spec plan.Spec) (kubernetes.Interface, error) {
	c, err := kubernetes.NewForConfig(&rest.Config{
		Host: fmt.Sprintf("https://127.0.0.1:%d", plan.APIPort),
		TLSClientConfig: rest.TLSClientConfig{
			CAFile: spec.PKI("ca.crt"), CertFile: spec.PKI("admin.crt"), KeyFile: spec.PKI("admin.key"),
		},
		QPS: -1, Timeout: 0,
	})
	if err != nil {
		return nil, fmt.Errorf("making a client of the API server: %w", err)
	}
	return c, nil
}

func (s *Supervisor) startControlPlane() error {
	unit := func(name string, args []string, before func() error) {
		s.control.Add(units.Unit{
			Name: name, Path: s.self, Args: append([]string{"testbed", name}, args...),
			Log: s.spec.Logs(name + ".log"), Before: before,
		})
	}
	unit("etcd", config.Etcd(filepath.Join(s.spec.Dir, "etcd", "member")), nil)
	unit("kube-apiserver", config.APIServer(s.spec), nil)
	unit("kube-controller-manager", config.ControllerManager(s.spec), nil)
	unit("kube-scheduler", config.Scheduler(s.spec), nil)
	if err := s.control.Start("etcd"); err != nil {
		return err
	}
	if err := s.control.Start("kube-apiserver"); err != nil {
		return err
	}
	go func() {
		// Started now they would only fail and be started again; the wait costs nobody anything.
		s.waitForAPI(context.Background())
		for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
			if err := s.control.Start(name); err != nil {
				log.Print(err)
			}
		}
	}()
	return nil
}

// waitForAPI returns when the API server is ready, or the context ends.
func (s *Supervisor) waitForAPI(ctx context.Context) {
	for ctx.Err() == nil && !s.apiReady(ctx) {
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *Supervisor) apiReady(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := s.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err == nil
}

// forward joins connections on the machine's loopback with the API server in this namespace.
func forward(listener net.Listener) error {
	for {
		outer, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer outer.Close()
			inner, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", plan.APIPort))
			if err != nil {
				return
			}
			defer inner.Close()
			done := make(chan struct{}, 2)
			join := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				// Half-closed, so that what the other side still sends arrives.
				if tcp, ok := to.(*net.TCPConn); ok {
					_ = tcp.CloseWrite()
				}
				done <- struct{}{}
			}
			go join(inner, outer)
			go join(outer, inner)
			<-done
			<-done
		}()
	}
}
