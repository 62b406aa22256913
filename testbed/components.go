package main

import (
	"context"
	"fmt"
	"os"
	"sort"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	"larder/testbed/internal/etcd"
)

// components are the programs of Kubernetes that this one binary can be. One link, and the text pages of all
// running processes are the same memory.
var components = map[string]func() int{
	"kube-apiserver":          program(apiserver.NewAPIServerCommand),
	"kube-controller-manager": program(controllermanager.NewControllerManagerCommand),
	"kube-scheduler":          program(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	// Not with SetupSignalContext: the command sets that up itself, and twice is a panic.
	"kubelet":    program(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	"kube-proxy": program(proxy.NewProxyCommand),
	"etcd":       etcd.Main,
	"kubectl": func() int {
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
		return 0
	},
}

func program(command func() *cobra.Command) func() int {
	return func() int { return cli.Run(command()) }
}

// runComponent becomes the component, which reads its flags from os.Args itself.
func runComponent(name string, args []string) {
	os.Args = append([]string{name}, args...)
	os.Exit(components[name]())
}

func componentNames() []string {
	names := make([]string, 0, len(components))
	for name := range components {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func fatal(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "testbed: "+format+"\n", args...)
	os.Exit(1)
}
