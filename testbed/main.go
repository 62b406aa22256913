// testbed is a real Kubernetes of several workers on one machine, in one binary. See docs/testbed.md.
package main

import (
	"log"
	"os"
	"path/filepath"

	"larder/testbed/internal/supervisor"
	"larder/testbed/internal/worker"
)

func main() {
	// A link named like a component is that component (`kubectl`); any other name goes by the first argument.
	if base := filepath.Base(os.Args[0]); components[base] != nil {
		runComponent(base, os.Args[1:])
	}
	if len(os.Args) > 1 && components[os.Args[1]] != nil {
		runComponent(os.Args[1], os.Args[2:])
	}
	if len(os.Args) == 3 {
		stages := map[string]func(string) error{
			supervisor.Stage: supervisor.Run, worker.Stage1: worker.RunStage1, worker.Stage2: worker.RunStage2,
		}
		if stage := stages[os.Args[1]]; stage != nil {
			log.SetFlags(log.Ltime | log.Lmicroseconds)
			if err := stage(os.Args[2]); err != nil {
				log.Fatalf("%s: %v", os.Args[1], err)
			}
			return
		}
	}
	if err := root().Execute(); err != nil {
		fatal("%v", err)
	}
}
