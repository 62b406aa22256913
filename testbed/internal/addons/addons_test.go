package addons

import (
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func claim() *core.PersistentVolumeClaim {
	return &core.PersistentVolumeClaim{
		ObjectMeta: meta.ObjectMeta{Namespace: "a", Name: "data", UID: "1234"},
		Spec: core.PersistentVolumeClaimSpec{Resources: core.VolumeResourceRequirements{
			Requests: core.ResourceList{core.ResourceStorage: resource.MustParse("5Gi")},
		}},
	}
}

func TestVolumeIsTiedToItsWorkerAndItsClaim(t *testing.T) {
	v := NewVolume(claim(), "worker-2")
	node, err := nodeOf(v)
	if err != nil || node != "worker-2" {
		t.Errorf("node %q, %v", node, err)
	}
	if v.Name != "pvc-1234" || v.Spec.ClaimRef.UID != "1234" || v.Spec.Local.Path != "/var/lib/testbed-volumes/pvc-1234" {
		t.Errorf("%+v", v)
	}
}

func TestOnlyReleasedVolumesToBeDeletedAreRemoved(t *testing.T) {
	v := NewVolume(claim(), "worker-2")
	v.Status.Phase = core.VolumeBound
	if removable(v) {
		t.Error("a bound volume would be removed")
	}
	v.Status.Phase = core.VolumeReleased
	if !removable(v) {
		t.Error("a released volume would stay")
	}
	v.Spec.PersistentVolumeReclaimPolicy = core.PersistentVolumeReclaimRetain
	if removable(v) {
		t.Error("a volume to be retained would be removed")
	}
}

func TestLowestFreeAddressIsGiven(t *testing.T) {
	ip, err := Free(map[string]bool{"10.102.0.1": true, "10.102.0.3": true}, "")
	if err != nil || ip != "10.102.0.2" {
		t.Errorf("%s, %v", ip, err)
	}
}

func TestAddressAskedForIsGivenOnlyWhenFreeAndOfThePool(t *testing.T) {
	if ip, err := Free(nil, "10.102.0.9"); err != nil || ip != "10.102.0.9" {
		t.Errorf("%s, %v", ip, err)
	}
	for _, asked := range []string{"10.102.0.9", "192.0.2.1", "nonsense"} {
		if _, err := Free(map[string]bool{"10.102.0.9": true}, asked); err == nil {
			t.Errorf("%s went through", asked)
		}
	}
}

func TestFullPoolIsSaid(t *testing.T) {
	taken := map[string]bool{}
	for range 254 {
		ip, err := Free(taken, "")
		if err != nil {
			t.Fatal(err)
		}
		taken[ip] = true
	}
	if ip, err := Free(taken, ""); err == nil {
		t.Errorf("gave %s", ip)
	}
}
