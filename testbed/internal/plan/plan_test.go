package plan

import "testing"

func TestWorkersAreSpreadOverZonesInTurn(t *testing.T) {
	workers, err := Workers(5, 3)
	if err != nil {
		t.Fatal(err)
	}
	var zones string
	for _, w := range workers {
		zones += w.Zone[len("zone-"):]
	}
	if zones != "abcab" {
		t.Errorf("zones in order: %s", zones)
	}
}

func TestAddressesOfWorkersAreApart(t *testing.T) {
	workers, _ := Workers(MaxWorkers, 1)
	seen := map[string]string{}
	for _, w := range workers {
		for _, address := range []string{w.IP(), w.PodCIDR(), w.Link()} {
			if other, taken := seen[address]; taken {
				t.Errorf("%s has %s, and so has %s", w.Name, address, other)
			}
			seen[address] = w.Name
		}
	}
}

func TestMoreZonesThanWorkersIsRefused(t *testing.T) {
	for _, c := range [][2]int{{2, 3}, {0, 1}, {1, 0}, {MaxWorkers + 1, 1}} {
		if _, err := Workers(c[0], c[1]); err == nil {
			t.Errorf("%d workers in %d zones went through", c[0], c[1])
		}
	}
}
