package config

import (
	"encoding/json"
	"strings"
	"testing"

	"larder/testbed/internal/plan"
)

func spec(t *testing.T) plan.Spec {
	t.Helper()
	workers, err := plan.Workers(3, 3)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Spec{Dir: "/bed", Workers: workers, Memory: 5 << 30}
}

func TestPodsOfAWorkerGetAddressesOfItsOwnNetwork(t *testing.T) {
	var parsed struct {
		Plugins []struct {
			Type string
			IPAM struct {
				Ranges [][]struct{ Subnet string }
			}
		}
	}
	if err := json.Unmarshal([]byte(CNI(spec(t).Workers[1])), &parsed); err != nil {
		t.Fatal(err)
	}
	if got := parsed.Plugins[0].IPAM.Ranges[0][0].Subnet; got != "10.100.2.0/24" {
		t.Errorf("subnet %s", got)
	}
	if parsed.Plugins[0].Type != "ptp" {
		t.Errorf("plugin %s: traffic between pods of a worker would pass no policy", parsed.Plugins[0].Type)
	}
}

func TestWorkerGivesPodsNoMoreMemoryThanPlanned(t *testing.T) {
	s := spec(t)
	var parsed struct{ SystemReserved map[string]string }
	if err := json.Unmarshal([]byte(Kubelet(s, s.Workers[0], 24<<30)), &parsed); err != nil {
		t.Fatal(err)
	}
	if got := parsed.SystemReserved["memory"]; got != "20401094656" {
		t.Errorf("reserved %s", got)
	}
	if err := json.Unmarshal([]byte(Kubelet(s, s.Workers[0], 1<<30)), &parsed); err != nil {
		t.Fatal(err)
	}
	if got := parsed.SystemReserved["memory"]; got != "0" {
		t.Errorf("on a small machine reserved %s", got)
	}
}

func TestEveryWorkerHasACertificateThatItsAuthorizerKnows(t *testing.T) {
	s := spec(t)
	found := 0
	for _, r := range Certificates(s) {
		if strings.HasPrefix(r.User, "system:node:") {
			found++
			if len(r.Groups) != 1 || r.Groups[0] != "system:nodes" {
				t.Errorf("%s is in %v", r.User, r.Groups)
			}
		}
	}
	if found != len(s.Workers) {
		t.Errorf("%d of %d workers have one", found, len(s.Workers))
	}
}

func TestEveryNameOfAnImageLeadsToTheTestBedsRegistry(t *testing.T) {
	if !strings.Contains(Hosts(), `server = "http://10.99.0.1:5000"`) {
		t.Error(Hosts())
	}
}
