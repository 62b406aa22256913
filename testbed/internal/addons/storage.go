package addons

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/component-helpers/storage/volume"

	"larder/testbed/internal/plan"
)

// Provisioner is the name of the test bed's storage provisioner.
const Provisioner = "testbed.local/directory"

// Class is the default storage class: volumes are directories on the disk of the worker that the first pod lands on.
func Class() *storage.StorageClass {
	reclaim, mode, expand := core.PersistentVolumeReclaimDelete, storage.VolumeBindingWaitForFirstConsumer, true
	return &storage.StorageClass{
		ObjectMeta: meta.ObjectMeta{
			Name:        "standard",
			Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"},
		},
		Provisioner: Provisioner, ReclaimPolicy: &reclaim, VolumeBindingMode: &mode, AllowVolumeExpansion: &expand,
	}
}

// Storage makes, grows and removes volumes.
type Storage struct {
	Client  kubernetes.Interface
	Claims  listers.PersistentVolumeClaimLister
	Volumes listers.PersistentVolumeLister
	Spec    plan.Spec
}

// Round brings all volumes to what the claims ask for.
func (s *Storage) Round(ctx context.Context) error {
	claims, err := s.Claims.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("listing claims: %w", err)
	}
	var failed error
	for _, claim := range claims {
		if claim.Annotations[volume.AnnStorageProvisioner] != Provisioner || claim.DeletionTimestamp != nil {
			continue
		}
		if claim.Spec.VolumeName == "" {
			failed = errors.Join(failed, s.provision(ctx, claim))
		} else {
			failed = errors.Join(failed, s.grow(ctx, claim))
		}
	}
	volumes, err := s.Volumes.List(labels.Everything())
	if err != nil {
		return errors.Join(failed, fmt.Errorf("listing volumes: %w", err))
	}
	for _, v := range volumes {
		if v.Annotations[volume.AnnDynamicallyProvisioned] == Provisioner && removable(v) {
			failed = errors.Join(failed, s.remove(ctx, v))
		}
	}
	return failed
}

func removable(v *core.PersistentVolume) bool {
	return v.Status.Phase == core.VolumeReleased && v.DeletionTimestamp == nil &&
		v.Spec.PersistentVolumeReclaimPolicy == core.PersistentVolumeReclaimDelete
}

// VolumeName is the name of a claim's volume: the same in every try.
func VolumeName(claim *core.PersistentVolumeClaim) string { return "pvc-" + string(claim.UID) }

func (s *Storage) provision(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	node := claim.Annotations[volume.AnnSelectedNode]
	if node == "" {
		return nil
	}
	if _, err := s.Spec.Worker(node); err != nil {
		return fmt.Errorf("claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	name := VolumeName(claim)
	if _, err := s.Volumes.Get(name); err == nil {
		return nil
	}
	dir := filepath.Join(s.Spec.Volumes(node), name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("making the volume %s: %w", name, err)
	}
	// What the umask took away: pods run as any user.
	if err := os.Chmod(dir, 0o777); err != nil {
		return fmt.Errorf("opening the volume %s to all users: %w", name, err)
	}
	_, err := s.Client.CoreV1().PersistentVolumes().Create(ctx, NewVolume(claim, node), meta.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("creating the volume %s: %w", name, err)
	}
	return nil
}

// NewVolume is the volume of a claim on a node. It is of type local, not hostPath: that honours fsGroup.
func NewVolume(claim *core.PersistentVolumeClaim, node string) *core.PersistentVolume {
	name := VolumeName(claim)
	class := ""
	if claim.Spec.StorageClassName != nil {
		class = *claim.Spec.StorageClassName
	}
	return &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{volume.AnnDynamicallyProvisioned: Provisioner}},
		Spec: core.PersistentVolumeSpec{
			Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimDelete,
			StorageClassName:              class,
			VolumeMode:                    claim.Spec.VolumeMode,
			ClaimRef: &core.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: core.PersistentVolumeSource{
				Local: &core.LocalVolumeSource{Path: filepath.Join(plan.VolumesInside, name)},
			},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{{
				MatchExpressions: []core.NodeSelectorRequirement{{
					Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{node},
				}},
			}}}},
		},
	}
}

// grow follows a claim that asks for more. A directory has no size, so that is a matter of numbers alone.
func (s *Storage) grow(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	if claim.Status.Phase != core.ClaimBound {
		return nil
	}
	v, err := s.Volumes.Get(claim.Spec.VolumeName)
	if err != nil {
		// Not seen yet: its event pulls the trigger.
		return nil
	}
	wanted := claim.Spec.Resources.Requests[core.ResourceStorage]
	if size := v.Spec.Capacity[core.ResourceStorage]; size.Cmp(wanted) < 0 {
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"capacity": map[string]any{"storage": wanted.String()}}})
		if err != nil {
			return fmt.Errorf("writing the new size of %s: %w", v.Name, err)
		}
		if _, err := s.Client.CoreV1().PersistentVolumes().Patch(ctx, v.Name, types.MergePatchType, patch, meta.PatchOptions{}); err != nil {
			return fmt.Errorf("growing the volume %s: %w", v.Name, err)
		}
	}
	if size := claim.Status.Capacity[core.ResourceStorage]; size.Cmp(wanted) < 0 {
		grown := claim.DeepCopy()
		grown.Status.Capacity = core.ResourceList{core.ResourceStorage: wanted}
		grown.Status.Conditions = nil
		if _, err := s.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, grown, meta.UpdateOptions{}); err != nil {
			return fmt.Errorf("telling the claim %s/%s its size: %w", claim.Namespace, claim.Name, err)
		}
	}
	return nil
}

func (s *Storage) remove(ctx context.Context, v *core.PersistentVolume) error {
	node, err := nodeOf(v)
	if err != nil {
		return err
	}
	if _, err := s.Spec.Worker(node); err != nil {
		return fmt.Errorf("volume %s: %w", v.Name, err)
	}
	if err := os.RemoveAll(filepath.Join(s.Spec.Volumes(node), filepath.Base(v.Spec.Local.Path))); err != nil {
		return fmt.Errorf("removing the data of %s: %w", v.Name, err)
	}
	err = s.Client.CoreV1().PersistentVolumes().Delete(ctx, v.Name, meta.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing the volume %s: %w", v.Name, err)
	}
	return nil
}

func nodeOf(v *core.PersistentVolume) (string, error) {
	a := v.Spec.NodeAffinity
	if v.Spec.Local == nil || a == nil || a.Required == nil || len(a.Required.NodeSelectorTerms) != 1 ||
		len(a.Required.NodeSelectorTerms[0].MatchExpressions) != 1 ||
		len(a.Required.NodeSelectorTerms[0].MatchExpressions[0].Values) != 1 {
		return "", fmt.Errorf("volume %s is not as it was made: its node cannot be told", v.Name)
	}
	return a.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0], nil
}
