package addons

import (
	"context"
	"fmt"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"larder/testbed/internal/plan"
)

// DNSImage is CoreDNS as the test bed's registry has it.
const DNSImage = plan.RegistryName + "/testbed/coredns:1"

// DNSName is what everything of DNS is called in the namespace kube-system.
const DNSName = "coredns"

const dnsRole = "system:" + DNSName

const corefile = `.:5353 {
    errors
    health :8080 {
        lameduck 2s
    }
    ready :8181
    cache 5
    kubernetes ` + plan.Domain + ` in-addr.arpa {
        pods insecure
        ttl 5
    }
}
`

// Install creates what a bare cluster lacks: the default storage class and DNS. Doing it again changes nothing.
func Install(ctx context.Context, client kubernetes.Interface, workers int) error {
	_, err := client.StorageV1().StorageClasses().Create(ctx, Class(), meta.CreateOptions{})
	if ignoreExisting(err) != nil {
		return fmt.Errorf("creating the storage class: %w", err)
	}
	const system = meta.NamespaceSystem
	labels := map[string]string{"k8s-app": "kube-dns"}
	named := meta.ObjectMeta{Name: DNSName, Namespace: system, Labels: labels}
	role := &rbac.ClusterRole{
		ObjectMeta: meta.ObjectMeta{Name: dnsRole},
		Rules: []rbac.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"services", "pods", "namespaces"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
		},
	}
	if _, err := client.RbacV1().ClusterRoles().Create(ctx, role, meta.CreateOptions{}); ignoreExisting(err) != nil {
		return fmt.Errorf("creating the role of DNS: %w", err)
	}
	binding := &rbac.ClusterRoleBinding{
		ObjectMeta: meta.ObjectMeta{Name: dnsRole},
		RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: dnsRole},
		Subjects:   []rbac.Subject{{Kind: rbac.ServiceAccountKind, Name: DNSName, Namespace: system}},
	}
	if _, err := client.RbacV1().ClusterRoleBindings().Create(ctx, binding, meta.CreateOptions{}); ignoreExisting(err) != nil {
		return fmt.Errorf("binding the role of DNS: %w", err)
	}
	if _, err := client.CoreV1().ServiceAccounts(system).Create(ctx, &core.ServiceAccount{ObjectMeta: named}, meta.CreateOptions{}); ignoreExisting(err) != nil {
		return fmt.Errorf("creating the service account of DNS: %w", err)
	}
	if _, err := client.CoreV1().ConfigMaps(system).Create(ctx, &core.ConfigMap{ObjectMeta: named, Data: map[string]string{"Corefile": corefile}}, meta.CreateOptions{}); ignoreExisting(err) != nil {
		return fmt.Errorf("creating the configuration of DNS: %w", err)
	}
	service := &core.Service{
		ObjectMeta: meta.ObjectMeta{Name: "kube-dns", Namespace: system, Labels: labels},
		Spec: core.ServiceSpec{
			ClusterIP: plan.ServiceDNS, Selector: labels,
			Ports: []core.ServicePort{
				{Name: "dns", Port: 53, TargetPort: intstr.FromInt32(5353), Protocol: core.ProtocolUDP},
				{Name: "dns-tcp", Port: 53, TargetPort: intstr.FromInt32(5353), Protocol: core.ProtocolTCP},
			},
		},
	}
	if _, err := client.CoreV1().Services(system).Create(ctx, service, meta.CreateOptions{}); ignoreExisting(err) != nil {
		return fmt.Errorf("creating the service of DNS: %w", err)
	}
	deployment := dnsDeployment(named, labels, int32(min(workers, 2)))
	if _, err := client.AppsV1().Deployments(system).Create(ctx, deployment, meta.CreateOptions{}); ignoreExisting(err) != nil {
		return fmt.Errorf("creating the deployment of DNS: %w", err)
	}
	return nil
}

func ignoreExisting(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// dnsDeployment runs CoreDNS on two workers where there are two, so that the loss of one does not take names away.
func dnsDeployment(named meta.ObjectMeta, labels map[string]string, replicas int32) *apps.Deployment {
	yes, no, grace := true, false, int64(5)
	probe := func(path string, port int32) *core.Probe {
		return &core.Probe{
			ProbeHandler:  core.ProbeHandler{HTTPGet: &core.HTTPGetAction{Path: path, Port: intstr.FromInt32(port)}},
			PeriodSeconds: 2, TimeoutSeconds: 2, FailureThreshold: 5,
		}
	}
	ready := probe("/ready", 8181)
	ready.PeriodSeconds = 1
	return &apps.Deployment{
		ObjectMeta: named,
		Spec: apps.DeploymentSpec{
			Replicas: &replicas,
			Selector: &meta.LabelSelector{MatchLabels: labels},
			Template: core.PodTemplateSpec{
				ObjectMeta: meta.ObjectMeta{Labels: labels},
				Spec: core.PodSpec{
					ServiceAccountName:            DNSName,
					PriorityClassName:             "system-cluster-critical",
					DNSPolicy:                     core.DNSDefault,
					TerminationGracePeriodSeconds: &grace,
					TopologySpreadConstraints: []core.TopologySpreadConstraint{{
						MaxSkew: 1, TopologyKey: core.LabelHostname, WhenUnsatisfiable: core.DoNotSchedule,
						LabelSelector: &meta.LabelSelector{MatchLabels: labels},
					}},
					Containers: []core.Container{{
						Name: DNSName, Image: DNSImage, Args: []string{"-conf", "/etc/coredns/Corefile"},
						Resources: core.ResourceRequirements{Requests: core.ResourceList{
							core.ResourceCPU: resource.MustParse("10m"), core.ResourceMemory: resource.MustParse("32Mi"),
						}},
						LivenessProbe: probe("/health", 8080), ReadinessProbe: ready,
						SecurityContext: &core.SecurityContext{
							RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
							Capabilities:   &core.Capabilities{Drop: []core.Capability{"ALL"}},
							SeccompProfile: &core.SeccompProfile{Type: core.SeccompProfileTypeRuntimeDefault},
						},
						VolumeMounts: []core.VolumeMount{{Name: "config", MountPath: "/etc/coredns", ReadOnly: true}},
					}},
					Volumes: []core.Volume{{Name: "config", VolumeSource: core.VolumeSource{ConfigMap: &core.ConfigMapVolumeSource{
						LocalObjectReference: core.LocalObjectReference{Name: DNSName},
					}}}},
				},
			},
		},
	}
}
