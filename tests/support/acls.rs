//! What a principal may do in a broker with an authorizer: one ACL at a time, in force when the call returns.

use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::bindings as ffi;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::run::wait_until;

/// An operation on a resource: `Acl { kind: "topic", name: "campaigns", prefix: false, operation: "READ" }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// `topic`, `group` or `transactional id`.
    pub kind: &'static str,
    pub name: String,
    /// All resources whose name begins with this one.
    pub prefix: bool,
    pub operation: String,
}

/// For whom, and by whose rights: the user of `bootstrap` must be a super user.
pub struct Acls {
    admin: BaseConsumer,
    principal: CString,
}

const ANSWERS_WITHIN: i32 = 30_000;

impl Acls {
    pub fn of(bootstrap: &str, principal: &str) -> Acls {
        let admin = ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("the settings are valid");
        Acls { admin, principal: CString::new(principal).expect("no NUL") }
    }

    pub fn grant(&self, acl: &Acl) {
        let call = |queue| unsafe {
            let mut new = acl.binding(&self.principal);
            ffi::rd_kafka_CreateAcls(self.client(), &mut new, 1, std::ptr::null(), queue);
            ffi::rd_kafka_AclBinding_destroy(new);
        };
        self.ask(call, |event| unsafe {
            let mut count = 0;
            let results =
                ffi::rd_kafka_CreateAcls_result_acls(ffi::rd_kafka_event_CreateAcls_result(event), &mut count);
            assert_eq!(count, 1);
            let error = ffi::rd_kafka_acl_result_error(*results);
            assert!(error.is_null(), "{acl:?}: {:?}", CStr::from_ptr(ffi::rd_kafka_error_string(error)));
        });
        self.wait_for(acl, 1);
    }

    pub fn revoke(&self, acl: &Acl) {
        let call = |queue| unsafe {
            let mut filter = acl.filter(&self.principal);
            ffi::rd_kafka_DeleteAcls(self.client(), &mut filter, 1, std::ptr::null(), queue);
            ffi::rd_kafka_AclBinding_destroy(filter);
        };
        self.ask(call, |event| unsafe {
            let (mut count, mut deleted) = (0, 0);
            let result = ffi::rd_kafka_event_DeleteAcls_result(event);
            let responses = ffi::rd_kafka_DeleteAcls_result_responses(result, &mut count);
            assert_eq!(count, 1);
            ffi::rd_kafka_DeleteAcls_result_response_matching_acls(*responses, &mut deleted);
            assert_eq!(deleted, 1, "{acl:?}");
        });
        self.wait_for(acl, 0);
    }

    /// The controller has it at once, the broker's authorizer a moment later.
    fn wait_for(&self, acl: &Acl, wanted: usize) {
        wait_until("the authorizer knows", Duration::from_secs(30), || {
            let mut count = 0;
            let call = |queue| unsafe {
                let filter = acl.filter(&self.principal);
                ffi::rd_kafka_DescribeAcls(self.client(), filter, std::ptr::null(), queue);
                ffi::rd_kafka_AclBinding_destroy(filter);
            };
            self.ask(call, |event| unsafe {
                ffi::rd_kafka_DescribeAcls_result_acls(ffi::rd_kafka_event_DescribeAcls_result(event), &mut count);
            });
            count == wanted
        });
    }

    fn client(&self) -> *mut ffi::rd_kafka_t {
        self.admin.client().native_ptr()
    }

    /// One request and its answer, which the second function reads.
    fn ask(&self, call: impl FnOnce(*mut ffi::rd_kafka_queue_t), read: impl FnOnce(*mut ffi::rd_kafka_event_t)) {
        // SAFETY: queue and event come from librdkafka and are destroyed once, after their last use.
        unsafe {
            let queue = ffi::rd_kafka_queue_new(self.client());
            call(queue);
            let event = ffi::rd_kafka_queue_poll(queue, ANSWERS_WITHIN);
            assert!(!event.is_null(), "no answer from Kafka");
            let error = ffi::rd_kafka_event_error_string(event);
            assert_eq!(
                ffi::rd_kafka_event_error(event),
                ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR,
                "{:?}",
                CStr::from_ptr(error)
            );
            read(event);
            ffi::rd_kafka_event_destroy(event);
            ffi::rd_kafka_queue_destroy(queue);
        }
    }
}

type Create = unsafe extern "C" fn(
    ffi::rd_kafka_ResourceType_t,
    *const c_char,
    ffi::rd_kafka_ResourcePatternType_t,
    *const c_char,
    *const c_char,
    ffi::rd_kafka_AclOperation_t,
    ffi::rd_kafka_AclPermissionType_t,
    *mut c_char,
    usize,
) -> *mut ffi::rd_kafka_AclBinding_t;

impl Acl {
    fn binding(&self, principal: &CStr) -> *mut ffi::rd_kafka_AclBinding_t {
        self.make(ffi::rd_kafka_AclBinding_new, principal)
    }

    /// Matches this one alone.
    fn filter(&self, principal: &CStr) -> *mut ffi::rd_kafka_AclBinding_t {
        self.make(ffi::rd_kafka_AclBindingFilter_new, principal)
    }

    fn make(&self, create: Create, principal: &CStr) -> *mut ffi::rd_kafka_AclBinding_t {
        use ffi::rd_kafka_AclOperation_t as Operation;
        use ffi::rd_kafka_ResourcePatternType_t as Pattern;
        use ffi::rd_kafka_ResourceType_t as Resource;
        let kind = match self.kind {
            "topic" => Resource::RD_KAFKA_RESOURCE_TOPIC,
            "group" => Resource::RD_KAFKA_RESOURCE_GROUP,
            "transactional id" => Resource::RD_KAFKA_RESOURCE_TRANSACTIONAL_ID,
            kind => panic!("{kind} is no kind of resource here"),
        };
        let pattern = match self.prefix {
            true => Pattern::RD_KAFKA_RESOURCE_PATTERN_PREFIXED,
            false => Pattern::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
        };
        let operation = match self.operation.as_str() {
            "READ" => Operation::RD_KAFKA_ACL_OPERATION_READ,
            "WRITE" => Operation::RD_KAFKA_ACL_OPERATION_WRITE,
            "CREATE" => Operation::RD_KAFKA_ACL_OPERATION_CREATE,
            "DESCRIBE" => Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE,
            "DESCRIBE_CONFIGS" => Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS,
            operation => panic!("{operation} is no operation here"),
        };
        let allow = ffi::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW;
        let name = CString::new(self.name.as_str()).expect("no NUL");
        let mut why = [0; 200];
        // SAFETY: the texts live as long as the call, which copies them.
        let made = unsafe {
            let (name, why) = (name.as_ptr(), why.as_mut_ptr());
            create(kind, name, pattern, principal.as_ptr(), c"*".as_ptr(), operation, allow, why, 200)
        };
        // SAFETY: librdkafka ends its text with a NUL.
        assert!(!made.is_null(), "{self:?}: {:?}", unsafe { CStr::from_ptr(why.as_ptr()) });
        made
    }
}
