package main

import (
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"larder/testbed/internal/control"
	"larder/testbed/internal/launcher"
	"larder/testbed/internal/units"
)

// dir is the test bed's directory, as given; directory makes it absolute.
var dir string

func directory() (string, error) { return filepath.Abs(dir) }

// askLimit is how long one command may take; loading a large image on a busy machine is the longest.
const askLimit = 5 * time.Minute

func ask(r control.Request) (control.Reply, error) {
	at, err := directory()
	if err != nil {
		return control.Reply{}, err
	}
	return control.Ask(at, r, askLimit)
}

// asking makes a command's action of a request.
func asking(request func(args []string) (control.Request, error)) func(*cobra.Command, []string) error {
	return func(_ *cobra.Command, args []string) error {
		r, err := request(args)
		if err != nil {
			return err
		}
		_, err = ask(r)
		return err
	}
}

func root() *cobra.Command {
	command := &cobra.Command{
		Use:           "testbed",
		Short:         "A real Kubernetes of several workers on one machine",
		SilenceErrors: true, SilenceUsage: true,
		Long: "A real Kubernetes of several workers on one machine.\n\n" +
			fmt.Sprintf("The first argument may also be one of %v: then it is that program.", componentNames()),
	}
	fallback := os.Getenv("LARDER_TESTBED_DIR")
	if fallback == "" {
		fallback = filepath.Join("target", "testbed")
	}
	command.PersistentFlags().StringVar(&dir, "dir", fallback, "where the test bed lies (LARDER_TESTBED_DIR)")
	command.AddCommand(up(), run(), down(), status(), ready(), workers(), image(), execute())
	command.AddCommand(
		&cobra.Command{
			Use: "kill COMPONENT [WORKER]", Short: "Kill a program at once; it stays down until started",
			Long: "Control plane: etcd, apiserver, controller-manager, scheduler. On a worker: kubelet, containerd, kube-proxy.",
			Args: cobra.RangeArgs(1, 2), RunE: asking(component(control.OpKill)),
		},
		&cobra.Command{
			Use: "start COMPONENT [WORKER]", Short: "Start a program that was killed",
			Args: cobra.RangeArgs(1, 2), RunE: asking(component(control.OpStart)),
		},
		&cobra.Command{
			Use: "pause COMPONENT [WORKER]", Short: "Stop a program where it is, as one that hangs",
			Args: cobra.RangeArgs(1, 2), RunE: asking(component(control.OpPause)),
		},
		&cobra.Command{
			Use: "resume COMPONENT [WORKER]", Short: "Let a paused program go on",
			Args: cobra.RangeArgs(1, 2), RunE: asking(component(control.OpResume)),
		},
	)
	return command
}

func component(op string) func([]string) (control.Request, error) {
	return func(args []string) (control.Request, error) {
		r := control.Request{Op: op, Component: args[0]}
		if len(args) == 2 {
			r.Worker = args[1]
		}
		return r, nil
	}
}

// size adds the flags that say what a test bed is to be.
func size(command *cobra.Command, o *launcher.Options) {
	flags := command.Flags()
	flags.IntVar(&o.Workers, "workers", 3, "how many workers")
	flags.IntVar(&o.Zones, "zones", 1, "how many zones they are spread over, in turn")
	flags.IntVar(&o.Port, "port", 0, "port of the API server on 127.0.0.1 (0 takes a free one)")
	flags.Int64Var(&o.Memory, "memory", 5<<30+512<<20, "what pods may request on one worker, in bytes")
	flags.BoolVar(&o.Audit, "audit", false, "write what service accounts ask of the API server into DIR/logs/audit.log")
}

func up() *cobra.Command {
	var o launcher.Options
	var limit time.Duration
	command := &cobra.Command{
		Use: "up", Short: "Start a test bed in the background and wait until it is ready", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var err error
			if o.Dir, err = directory(); err != nil {
				return err
			}
			begin := time.Now()
			spec, err := launcher.Up(o, limit)
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "testbed: %d workers ready after %.1f s\n", len(spec.Workers), time.Since(begin).Seconds())
			fmt.Println(spec.Kubeconfig())
			return nil
		},
	}
	size(command, &o)
	command.Flags().DurationVar(&limit, "timeout", 3*time.Minute, "how long that may take")
	return command
}

func run() *cobra.Command {
	var o launcher.Options
	command := &cobra.Command{
		Use: "run", Short: "Be a test bed, in the foreground, until SIGTERM", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var err error
			if o.Dir, err = directory(); err != nil {
				return err
			}
			return launcher.Run(o)
		},
	}
	size(command, &o)
	command.Flags().BoolVar(&o.UntilEOF, "until-eof", false, "end when standard input ends as well")
	return command
}

func down() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End the test bed, or clean up after one that was killed; logs stay", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			at, err := directory()
			if err != nil {
				return err
			}
			return launcher.Down(at)
		},
	}
}

func ready() *cobra.Command {
	var limit time.Duration
	command := &cobra.Command{
		Use: "ready", Short: "Wait until all workers that are switched on are ready, and DNS is", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := ask(control.Request{Op: control.OpReady, Seconds: int(limit.Seconds())})
			return err
		},
	}
	command.Flags().DurationVar(&limit, "timeout", time.Minute, "how long that may take")
	return command
}

func workers() *cobra.Command {
	group := &cobra.Command{Use: "worker", Short: "Power, and the network cable, of a worker"}
	for _, c := range []struct{ verb, op, short string }{
		{"off", control.OpOff, "Take its power: all its processes end at once"},
		{"on", control.OpOn, "Give it power again, with the disk that it had"},
		{"cut", control.OpCut, "Pull its network cable: its pods go on, alone"},
		{"join", control.OpJoin, "Plug its network cable in again"},
	} {
		group.AddCommand(&cobra.Command{
			Use: c.verb + " WORKER", Short: c.short, Args: cobra.ExactArgs(1),
			RunE: asking(func(args []string) (control.Request, error) { return control.Request{Op: c.op, Worker: args[0]}, nil }),
		})
	}
	return group
}

func image() *cobra.Command {
	group := &cobra.Command{Use: "image", Short: "Images, from archives as docker save or buildah push write them"}
	group.AddCommand(
		&cobra.Command{
			Use: "load ARCHIVE", Short: "Import an image into every worker that has power, under the name in the archive",
			Args: cobra.ExactArgs(1),
			RunE: asking(func(args []string) (control.Request, error) {
				path, err := filepath.Abs(args[0])
				return control.Request{Op: control.OpImageLoad, Path: path}, err
			}),
		},
		&cobra.Command{
			Use: "push ARCHIVE NAME", Short: "Store an image in the test bed's registry; pods pull it as registry.testbed/NAME",
			Args: cobra.ExactArgs(2),
			RunE: asking(func(args []string) (control.Request, error) {
				path, err := filepath.Abs(args[0])
				return control.Request{Op: control.OpImagePush, Path: path, Reference: args[1]}, err
			}),
		},
	)
	return group
}

func execute() *cobra.Command {
	var worker string
	command := &cobra.Command{
		Use: "exec [--worker WORKER] -- COMMAND…", Short: "Run a command in the control plane's network, or inside a worker",
		Long: "Without a worker, only the network is the test bed's: pods, Services and load balancers are reached directly.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			at, err := directory()
			if err != nil {
				return err
			}
			if worker == "" {
				return launcher.Exec(at, args)
			}
			code, err := launcher.ExecWorker(at, worker, args)
			if err == nil {
				os.Exit(code)
			}
			return err
		},
	}
	command.Flags().SetInterspersed(false)
	command.Flags().StringVar(&worker, "worker", "", "the worker to run it in")
	return command
}

func status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Say what runs", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			reply, err := ask(control.Request{Op: control.OpStatus})
			if err != nil {
				return err
			}
			out := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintf(out, "control plane\t\t\t%s\n", programs(reply.Status.Control))
			for _, w := range reply.Status.Workers {
				fmt.Fprintf(out, "%s\t%s\t%s\t%s\n", w.Name, w.Zone, condition(reply.Status.API, w), programs(w.Units))
			}
			return out.Flush()
		},
	}
}

func condition(api bool, w control.Worker) string {
	switch {
	case !w.On:
		return "off"
	case w.Cut:
		return "cut off"
	case !api:
		return "unknown"
	case w.Ready:
		return "ready"
	default:
		return "not ready"
	}
}

func programs(list []units.Status) string {
	text := ""
	for i, u := range list {
		if i > 0 {
			text += ", "
		}
		text += u.Name
		switch {
		case !u.Wanted:
			text += " (killed)"
		case !u.Running:
			text += " (down)"
		case u.Paused:
			text += " (paused)"
		}
		if u.Restarts > 0 {
			text += fmt.Sprintf(" (restarted %d×)", u.Restarts)
		}
	}
	return text
}
